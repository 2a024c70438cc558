from django import forms
from django.utils.translation import gettext_lazy as _

from apps.monitoring.advisor.hardware import PRECISION_CHOICES
from apps.registry.models import ModelVersion
from apps.training.selectors import presets

PURPOSES = [("train", _("to train it")), ("serve", _("to serve it"))]
RECIPES = [("paper", _("as in the ZeRO paper: 16 B a parameter, weights in 16 bits")), ("portal", _("as this portal trains: FP32 weights, autocast"))]
STAGES = [(n, str(n)) for n in range(4)]
VERSIONS_SHOWN = 100


class HardwareForm(forms.Form):
    """What the advisor is asked. Sent by GET, so that an answer has an address."""

    model = forms.ChoiceField(label=_("Model"))
    purpose = forms.ChoiceField(label=_("Hardware"), choices=PURPOSES, initial="train")
    precision = forms.ChoiceField(label=_("Precision"), choices=PRECISION_CHOICES, initial="bf16")
    gpus = forms.IntegerField(label=_("Devices"), initial=1, min_value=1, max_value=100_000)
    zero_stage = forms.TypedChoiceField(label=_("ZeRO stage"), choices=STAGES, coerce=int, initial=0)
    recipe = forms.ChoiceField(label=_("Bytes kept"), choices=RECIPES, initial="paper")
    batch = forms.IntegerField(label=_("Sequences a pass"), initial=8, min_value=1, max_value=1_000_000)
    sequence = forms.IntegerField(
        label=_("Tokens a sequence"), required=False, min_value=1, max_value=10_000_000, help_text=_("The model's longest where empty.")
    )
    tokens = forms.FloatField(
        label=_("Tokens to read"), required=False, min_value=1, max_value=1e18, help_text=_("20 an active parameter where empty.")
    )
    days = forms.FloatField(
        label=_("Done in days"),
        required=False,
        min_value=0.001,
        max_value=1e5,
        help_text=_("The smallest fleet of each device for it; any time where empty."),
    )
    checkpointing = forms.BooleanField(label=_("Activation checkpointing"), required=False, help_text=_("A layer's activations are computed again."))
    qps = forms.FloatField(label=_("Answers/s"), initial=10, min_value=0.000001, max_value=1e9)
    p99_ms = forms.FloatField(label=_("P99 in ms"), initial=500, min_value=0.001, max_value=1e9)
    answer_tokens = forms.IntegerField(label=_("Tokens an answer"), initial=64, min_value=1, max_value=1_000_000)

    TRAINING = ("zero_stage", "recipe", "batch", "sequence", "checkpointing", "tokens", "days")
    SERVING = ("qps", "p99_ms", "answer_tokens")

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        versions = ModelVersion.objects.order_by("-id")[:VERSIONS_SHOWN]
        self.fields["model"].choices = [
            (_("Presets"), [(f"preset:{p['name']}", p["name"]) for p in presets()]),
            *([(_("Versions"), [(f"version:{v.pk}", v.name) for v in versions])] if versions else []),
        ]
        for name in ("tokens", "days", "qps", "p99_ms"):
            self.fields[name].widget.attrs["step"] = "any"

    @classmethod
    def standing(cls, asked) -> "HardwareForm":
        """Filled from the address; what is missing there has its initial value, so that a short link works too."""
        start = {name: field.initial for name, field in cls.base_fields.items() if field.initial is not None}
        start["model"] = "preset:nano"
        start["precision"] = "int8" if asked.get("purpose") == "serve" else "bf16"
        return cls({**start, **{name: value for name, value in asked.items() if name in cls.base_fields}})

    def question(self) -> dict:
        """The arguments of `advisor.hardware.advise`, but for the shape."""
        data = {name: value for name, value in self.cleaned_data.items() if name != "model"}
        data |= {name: data[name] or None for name in ("sequence", "tokens", "days")}
        return data
