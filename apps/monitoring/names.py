"""Every metric's name and every Redis key, in one place.

Redis may be wiped at any time: nothing below is the only copy of anything but cached answers, the last seconds of counters and the
last second's answers.
"""

# -- Prometheus
REQUESTS_TOTAL = "dsportal_requests_total"
REQUEST_SECONDS = "dsportal_request_seconds"
FIRST_TOKEN_SECONDS = "dsportal_first_token_seconds"
PHASE_SECONDS = "dsportal_phase_seconds"
TOKENS_TOTAL = "dsportal_tokens_total"
CACHE_LOOKUPS_TOTAL = "dsportal_cache_lookups_total"
CACHED_BYTES = "dsportal_cache_bytes"
QUEUE_DEPTH = "dsportal_queue_depth"
ENGINE_RUNNING = "dsportal_engine_running_sequences"
ENGINE_CACHE_BYTES = "dsportal_engine_cache_bytes"
ENGINE_WAITING = "dsportal_engine_waiting_sequences"
ENGINE_SLOTS = "dsportal_engine_slots"
ENGINE_STEPS_TOTAL = "dsportal_engine_steps_total"
ENGINE_TOKENS_TOTAL = "dsportal_engine_tokens_total"
ENGINE_PREEMPTIONS_TOTAL = "dsportal_engine_preemptions_total"
ENGINES_BYTES = "dsportal_engines_bytes"
ENGINE_DECODE_TURNS_TOTAL = "dsportal_engine_decode_turns_total"
ENGINE_DECODED_TOKENS_TOTAL = "dsportal_engine_decoded_tokens_total"
ENGINE_GUESSED_TOKENS_TOTAL = "dsportal_engine_guessed_tokens_total"
ENGINE_ACCEPTED_TOKENS_TOTAL = "dsportal_engine_accepted_tokens_total"
JOBS_TOTAL = "dsportal_jobs_total"
JOB_SECONDS = "dsportal_job_seconds"
JOBS_WAITING = "dsportal_jobs_waiting"
WORKERS = "dsportal_workers"
WORKER_MEMORY = "dsportal_worker_memory_bytes"
DISK_FREE = "dsportal_disk_free_bytes"
DISK_SIZE = "dsportal_disk_size_bytes"
REDIS_MEMORY = "dsportal_redis_memory_bytes"
LIVE_VERSIONS = "dsportal_live_versions"
LIVE_SINCE = "dsportal_live_since_seconds"
QUEUE_LIMIT = "dsportal_queue_limit"
ALERT_VALUE = "dsportal_alert_value"

# -- Redis
SECOND = "dsportal:metrics:second:{second}"  # hash: version|what → count, see apps.monitoring.buckets; kept for SECONDS_KEPT
SECONDS_KEPT = 3700
CACHE_DATA = "dsportal:cache:data"  # hash: key → answer (JSON)
CACHE_USED = "dsportal:cache:used"  # sorted set: key → when it was last used
CACHE_BYTES = "dsportal:cache:bytes"
SERVING_EPOCH = "dsportal:serving:epoch"  # changes with what is live and with experiments
ANSWER_LOG = "dsportal:answers:log"  # stream: answers' rows (JSON) that are not in the database yet
STREAM = "dsportal:answer:{answer}:stream"  # stream of numbered pieces of one answer, then its end
DRAFTING = "dsportal:drafting:{version}:{draft}"  # hash: what the engines counted while the draft guessed; expires when it is not used
EMBEDDING = "dsportal:embedding:{request}"  # list: what the worker found for one request, once
ASKED = "dsportal:answers:asked"  # stream, read as one group by the inference workers: questions whose answers have not ended
CANCEL = "dsportal:answer:{answer}:cancel"  # set when the asker went away, for a worker that begins later
CANCELLED = "dsportal:answers:cancelled"  # channel: the same, said at that moment
FLIGHT = "dsportal:flight:{key}"  # which answer is being made for a question that others ask too
ENGINES_WANTED = "dsportal:engines:wanted"  # sorted set: version that is about to be asked → until when it is wanted
ENGINES_ASKED = "dsportal:engines:asked"  # channel: a version was added there
ENGINES_FOLLOWERS = "dsportal:engines:followers"  # sorted set: inference worker → when it last looked
ENGINES_OPEN = "dsportal:engines:open:{version}"  # hash: inference worker → when it had loaded the version, or why it could not (JSON)
IN_FLIGHT = "dsportal:answers:in-flight"  # sorted set: answer → deadline
PRESENT = "dsportal:present:{role}"  # hash: a process that lives → until when it says so, and its memory in bytes
ALERT_VALUES = "dsportal:alert-values"  # hash: rule → what beat measured last, where there was something to judge
ROLLED_UP = "dsportal:metrics:rolled-up"  # start of the newest minute that is in the database
UPSTREAM = "dsportal:upstream:{version}"  # what the inference worker that looked last knows of it (JSON); expires
TRACE = "dsportal:trace:{trace}"  # list: spans (JSON) of one request, in the order in which they were told; expires
TRACE_OF = "dsportal:trace-of:{name}"  # id of a request or an answer → its trace
TRACES = "dsportal:traces"  # sorted set: trace → when it began, in µs
TRACES_NOTABLE = "dsportal:traces:notable"  # the same, of those that were slow or failed
TRACES_OF = "dsportal:traces:of:{user}"  # the same, of one person
