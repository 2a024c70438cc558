from django import forms
from django.conf import settings
from django.utils.translation import gettext_lazy as _

from apps.datasets.models import Dataset
from apps.jobs.models import Job
from apps.registry.forms import newest_and
from apps.registry.models import ModelVersion
from apps.training.learning import curriculum_for
from apps.training.models import TrainingJob
from apps.training.selectors import presets
from workers.training.spec import TrainSpec

UNCOMPRESSED = (ModelVersion.Kind.MOE, ModelVersion.Kind.DENSE, ModelVersion.Kind.DISTILLED)
ZERO_STAGES = [
    (0, _("0: every rank holds everything")),
    (1, _("1: the optimizer's state is shared out")),
    (2, _("2: and the gradients")),
    (3, _("3: and the parameters")),
]
SCHEDULES = [("linear", _("falls evenly")), ("cosine", _("falls as a cosine")), ("wsd", _("stays, then falls (WSD)")), ("constant", _("stays"))]


class StartForm(forms.Form):
    """From a preset to a run. What the service refuses comes back at the field of the same name."""

    dataset = forms.ModelChoiceField(Dataset.objects.none(), label=_("Dataset"), empty_label=None)
    preset = forms.ChoiceField(label=_("Preset"), widget=forms.RadioSelect, initial="nano")
    amount = forms.FloatField(label=_("For"), initial=2, min_value=0.01, widget=forms.NumberInput(attrs={"step": "any", "inputmode": "decimal"}))
    unit = forms.ChoiceField(
        label=_("of"),
        choices=[("minutes", _("minutes")), ("steps", _("steps"))],
        initial="minutes",
        widget=forms.Select(attrs={"aria-label": _("Minutes or steps")}),
    )
    parent = forms.ModelChoiceField(
        ModelVersion.objects.none(), label=_("Go on from"), required=False, empty_label=_("nothing: new weights"),
        help_text=_("An uncompressed version whose weights and tokenizer it starts with."),
    )  # fmt: skip
    precision = forms.ChoiceField(label=_("Precision"), choices=TrainingJob.Precision.choices, initial=TrainingJob.Precision.BF16)
    router = forms.ChoiceField(label=_("Router"), choices=TrainingJob.Router.choices, initial=TrainingJob.Router.SOFTMAX)
    accum_steps = forms.IntegerField(
        label=_("Gradient accumulation"), initial=1, min_value=1, max_value=4096, help_text=_("Micro-batches to one step of the optimizer.")
    )
    micro_batch = forms.IntegerField(
        label=_("Examples a pass"), required=False, initial=TrainSpec.model_fields["micro_batch"].default, min_value=1, max_value=4096,
        help_text=_("Of one process; a smaller number takes less memory."),
    )  # fmt: skip
    activation_checkpointing = forms.BooleanField(
        label=_("Activation checkpointing"), required=False, help_text=_("A layer's activations are computed again."),
    )  # fmt: skip
    world_size = forms.IntegerField(label=_("Processes"), initial=1, min_value=1, max_value=1024, help_text=_("Ranks under torchrun."))
    zero_stage = forms.TypedChoiceField(label=_("ZeRO stage"), choices=ZERO_STAGES, coerce=int, initial=0)
    expert_parallel_size = forms.IntegerField(
        label=_("Experts spread over"), required=False, initial=1, min_value=1, max_value=1024,
        help_text=_("So many processes hold a part of each layer's experts; 1: every one holds all. With ZeRO stages 0 and 1."),
    )  # fmt: skip
    method = forms.ChoiceField(
        label=_("What is trained"), choices=TrainingJob.Method.choices, initial=TrainingJob.Method.FULL, required=False,
        help_text=_("LoRA needs a version to go on from: small matrices beside its weights are learnt, which takes less memory."),
    )  # fmt: skip
    lora_rank = forms.IntegerField(
        label=_("LoRA rank"), initial=8, min_value=1, max_value=1024, required=False, help_text=_("The size of the adapters.")
    )
    objective = forms.ChoiceField(
        label=_("Learn from"), choices=TrainingJob.Objective.choices, initial=TrainingJob.Objective.SFT, required=False,
        help_text=_("DPO and KTO learn from ratings, and need a version to go on from."),
    )  # fmt: skip
    order = forms.ChoiceField(
        label=_("Order"), choices=[("mixed", _("all kinds mixed")), ("stages", _("in stages: text, questions, claims, ratings"))], initial="mixed",
        required=False, help_text=_("Stages that the dataset has no rows for are left out."),
    )  # fmt: skip
    optimizer = forms.ChoiceField(
        label=_("Optimizer"), choices=[("muon", "Muon"), ("adamw", "AdamW")], initial="muon", required=False,
        help_text=_("Muon turns the matrices' steps; the rest goes by AdamW."),
    )  # fmt: skip
    schedule = forms.ChoiceField(
        label=_("Learning rate"), choices=SCHEDULES, initial="linear", required=False, help_text=_("How it goes on after the warm-up."),
    )  # fmt: skip
    ema_decay = forms.FloatField(
        label=_("Averaged weights"), required=False, initial=0.0, min_value=0.0, max_value=0.99999,
        widget=forms.NumberInput(attrs={"step": "any", "inputmode": "decimal"}),
        help_text=_("0: the last step's weights become the version. 0.999: a moving average of them does."),
    )  # fmt: skip
    seed = forms.IntegerField(label=_("Seed"), initial=0, min_value=0, max_value=2**31 - 1)
    domain_routing = forms.FloatField(
        label=_("Experts by domain"), required=False, initial=0.0, min_value=0.0, max_value=1.0,
        widget=forms.NumberInput(attrs={"step": "any", "inputmode": "decimal"}),
        help_text=_("0: experts know of no domains. A larger weight draws them apart while the model trains; answering needs no domain."),
    )  # fmt: skip
    clone = forms.CharField(required=False, widget=forms.HiddenInput)

    ADVANCED = (
        "precision",
        "router",
        "accum_steps",
        "micro_batch",
        "activation_checkpointing",
        "world_size",
        "zero_stage",
        "expert_parallel_size",
        "method",
        "lora_rank",
        "objective",
        "order",
        "optimizer",
        "schedule",
        "ema_decay",
        "seed",
        "domain_routing",
    )

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        processed = Dataset.objects.filter(current_run__status=Job.Status.SUCCEEDED).order_by("-id")
        parents = ModelVersion.objects.filter(kind__in=UNCOMPRESSED).order_by("-id")
        self.fields["dataset"].queryset = processed
        self.fields["parent"].queryset = parents
        self.fields["dataset"].choices = [(d.pk, self._dataset_label(d)) for d in newest_and(processed, self["dataset"].value())]
        self.fields["parent"].choices = [
            ("", self.fields["parent"].empty_label),
            *((v.pk, v.name) for v in newest_and(parents, self["parent"].value())),
        ]
        self.fields["preset"].choices = [(p["name"], p["name"]) for p in presets()]
        self.fields["world_size"].help_text = _("Ranks under torchrun; this machine has %(n)s cores.") % {"n": settings.CORES}

    @staticmethod
    def _dataset_label(dataset: Dataset) -> str:
        return f"{dataset.name} ({dataset.used_rows:,})" if dataset.used_rows is not None else dataset.name

    def asked(self) -> dict:
        """The arguments of `training.services.start`, from clean data."""
        data = dict(self.cleaned_data)
        amount, unit = data.pop("amount"), data.pop("unit")
        data.pop("clone")
        rank, order = data.pop("lora_rank"), data.pop("order")
        data["method"], data["objective"] = data["method"] or TrainingJob.Method.FULL, data["objective"] or TrainingJob.Objective.SFT
        if data["method"] == TrainingJob.Method.LORA:
            data["lora"] = {"rank": rank or 8, "alpha": 2.0 * (rank or 8)}
        if order == "stages":
            data["stages"] = curriculum_for(data["dataset"])
        data["domain_routing"] = data["domain_routing"] or 0.0
        data["recipe"] = {name: data.pop(name) or TrainSpec.model_fields[name].default for name in ("optimizer", "schedule", "ema_decay")}
        data["expert_parallel_size"] = data["expert_parallel_size"] or 1
        return {**data, "minutes": amount if unit == "minutes" else None, "steps": max(1, round(amount)) if unit == "steps" else None}

    @classmethod
    def initial_of(cls, job: TrainingJob) -> dict:
        """What a clone of the job begins with."""
        same = {
            name: getattr(job, name)
            for name in (
                "preset",
                "precision",
                "router",
                "accum_steps",
                "world_size",
                "zero_stage",
                "expert_parallel_size",
                "method",
                "objective",
                "seed",
                "domain_routing",
            )
        }
        same |= {"lora_rank": job.lora.get("rank", 8), "order": "stages" if job.stages else "mixed"}
        amount, unit = (job.minutes, "minutes") if job.minutes else (job.steps, "steps")
        same |= {name: value for name, value in job.recipe.items() if name in cls.base_fields}
        same["activation_checkpointing"] = job.options.get("spec", {}).get("activation_checkpointing", False)
        if micro_batch := job.options.get("spec", {}).get("micro_batch"):
            same["micro_batch"] = micro_batch
        return {**same, "dataset": job.dataset_id, "parent": job.parent_id, "amount": amount, "unit": unit, "clone": job.pk}
