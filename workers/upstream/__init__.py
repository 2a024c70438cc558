"""A model that another server holds: any that speaks OpenAI's API, such as vLLM, SGLang or llama.cpp's.

    spec.py      where it is and what it is called there (`upstream.json`, the only file of such a version)
    check.py     does it answer, and does it have the model
    wire.py      what is sent, and what comes back
    guard.py     retries, the circuit breaker, what is known of its health
    engine.py    the engine: the same interface as that of `workers.engine`

The web process reads `spec` and `check`; only `engine` needs the engine's packages.
"""
