"""Rows and files as the services leave them, without the minutes that a real run takes."""

import json
from pathlib import Path

from django.conf import settings

from apps.accounts.models import User
from apps.datasets import services as datasets
from apps.datasets.models import Dataset
from apps.ids import new_id
from apps.jobs import services as jobs
from apps.jobs.models import Job
from apps.jobs.runs import run_of, specific, work_folder
from apps.registry import services as registry
from apps.registry.models import Evaluation, EvaluationSet, ModelVersion
from apps.serving.models import Answer
from apps.serving.questions import prompt_key
from apps.training.models import TrainingJob
from tests.apps.answering import tokenizer
from workers.corpus.folder import write_folder
from workers.corpus.records import Record

ENTRIES = [{"title": "Water", "text": "Water is made of hydrogen and oxygen.", "domain": "chemistry"}]
FIGURES = {
    "bleu": 70.0, "bleu_low": 65.0, "bleu_high": 75.0, "baseline_bleu": 2.0, "refusal_rate": 0.95, "false_alarm_rate": 0.02, "questions": 2,
    "claims": 0, "tokens_per_second": 100.0, "per_domain": {},
}  # fmt: skip

# Of a training job's result: the experts of the first layer know their domains, those of the second do not.
EXPERTISE = {
    "domains": ["law", "medicine"], "expert_domain": [[[0.7, 0.1], [0.3, 0.9]], [[0.5, 0.5], [0.5, 0.5]]],
    "expert_balance": [{"max_over_mean": 1.1, "min_over_mean": 0.9}] * 2,
    "specialisation": {
        "domain_entropy": 1.0, "examples": 32, "shuffles": 200,
        "layers": [
            {"bits": 0.6, "chance": 0.03, "chance_high": 0.05, "share": 0.588}, {"bits": 0.01, "chance": 0.02, "chance_high": 0.04, "share": -0.01},
        ],
    },
}  # fmt: skip


def dataset(actor: User, name: str = "demo") -> Dataset:
    return datasets.create_from_records(name=name, records=ENTRIES, actor=actor)


def complete(job: Job, result: dict) -> Job:
    """What the worker does when the child has ended: the job's own `complete`, then its row."""
    job = Job.objects.get(pk=job.pk)
    assert jobs.move(job, Job.Status.RUNNING, attempt=1, worker="tests"), job.status
    run = run_of(job.kind)
    row = specific(job)
    assert jobs.finish(job, result=run.complete(row, result, work_folder(job)))
    run.succeeded(specific(Job.objects.get(pk=job.pk)))
    return specific(Job.objects.get(pk=job.pk))


def processed(actor: User, name: str = "demo", rows: list[Record] | None = None) -> Dataset:
    """A dataset whose processing has succeeded: two questions are held out, one document is dropped."""
    made = dataset(actor, name)
    run = datasets.process(dataset=made, actor=actor)
    records = rows or [
        Record(0, "e1", "entry", title="Water", text=f"Water of {name} is H2O.", domain="chemistry", lang="en"),
        Record(1, "d1", "document", text="buy now", domain=None, lang="en").dropped("cleaned", "advertisement"),
        Record(2, "q1", "question", question=f"What is water in {name}?", answer="H2O.", domain="chemistry", lang="en", split="eval", source="e1"),
        Record(
            3, "q2", "question", question=f"Of what is water made in {name}?", answer="H2O.", domain="chemistry", lang="en", split="eval", source="e1"
        ),
    ]
    report = {
        "funnel": [{"stage": "raw", "rows": len(records)}, {"stage": "used", "rows": sum(r.kept for r in records)}],
        "reasons": {"advertisement": 1}, "domains": {"chemistry": 3}, "languages": {"en": 3}, "duplicates": {"clusters": 0, "rows": 0},
    }  # fmt: skip
    write_folder(work_folder(run) / "processed", records, report)
    complete(run, {})
    made.refresh_from_db()
    return made


def version(
    name: str, *, kind: str = "moe", state: str = "candidate", parent: ModelVersion | None = None, run=None, size: int = 1000,
    weights: str = "model.safetensors",
) -> ModelVersion:  # fmt: skip
    folder = Path(settings.WORK_ROOT) / new_id()
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"max_position_embeddings": 512}))
    (folder / weights).write_bytes(b"w" * size)
    tokenizer().save(folder, 512)
    result = {"total_parameters": 1000, "active_parameters": 500, "config": {"max_seq_len": 512}}
    made = registry.register_version(kind=kind, folder=folder, parent=parent, run=run, result=result, actor=None, name=name)
    if state != "candidate":
        ModelVersion.objects.filter(pk=made.pk).update(state=state)
        made.refresh_from_db()
    return made


def evaluated(of: ModelVersion, on: EvaluationSet, **figures: float) -> Evaluation:
    row = Evaluation.objects.create(title=f"Evaluate {of.name}", model_version=of, evaluation_set=on)
    Evaluation.objects.filter(pk=row.pk).update(status=Job.Status.SUCCEEDED, metrics=FIGURES | figures)
    row.refresh_from_db()
    return row


def training_job(of: Dataset, **fields) -> TrainingJob:
    return TrainingJob.objects.create(title="Train", dataset=of, run=of.current_run, preset="nano", minutes=1, **fields)


def answer(of: ModelVersion, user: User | None, prompt: str = "What is water?", **fields) -> Answer:
    return Answer.objects.create(
        model_version=of, user=user, route="generate", prompt=prompt, prompt_key=prompt_key(prompt), text="H2O.",
        messages=[{"role": "user", "content": prompt}], **fields,
    )  # fmt: skip
