from django import forms
from django.db.models import Model, QuerySet
from django.utils.translation import gettext_lazy as _

from apps.registry.models import CompressionJob, ModelVersion
from apps.training.selectors import presets

COMPRESSIBLE = (ModelVersion.Kind.MOE, ModelVersion.Kind.DENSE, ModelVersion.Kind.DISTILLED, ModelVersion.Kind.PRUNED)
CHOICES_SHOWN = 60
STRUCTURES = [("unstructured", _("single weights")), ("neuron", _("whole neurons")), ("2:4", _("two of every four"))]
# Which fields belong to which method: the page shows them with it, the service is given no others.
FIELDS = {
    "int8": (),
    "prune": ("threshold", "sparsity", "structure"),
    "distill": ("student", "minutes"),
    "onnx": (),
    "policy": ("max_bleu_loss", "max_megabytes"),
}


def newest_and(rows: QuerySet, chosen: str | None) -> list[Model]:
    """What a list offers: the newest rows, and the chosen one even where it is older."""
    found = list(rows[:CHOICES_SHOWN])
    if chosen and not any(row.pk == chosen for row in found):
        found += rows.filter(pk=chosen)
    return found


class CompressForm(forms.Form):
    version = forms.ModelChoiceField(ModelVersion.objects.none(), label=_("Version"), empty_label=None)
    method = forms.ChoiceField(label=_("Method"), choices=CompressionJob.Method.choices, widget=forms.RadioSelect, initial=CompressionJob.Method.INT8)
    threshold = forms.FloatField(
        label=_("Threshold"), required=False, min_value=0.000001, help_text=_("Weights smaller than this become zero, such as 0.1.")
    )
    sparsity = forms.FloatField(
        label=_("Sparsity"),
        required=False,
        min_value=0.01,
        max_value=0.99,
        help_text=_("Share of the weights that become zero, instead of a threshold."),
    )
    structure = forms.ChoiceField(label=_("What goes"), choices=STRUCTURES, required=False, initial="unstructured")
    student = forms.ChoiceField(label=_("Student"), required=False, help_text=_("A preset, or a shape derived from the teacher's."))
    minutes = forms.FloatField(label=_("Minutes"), required=False, min_value=0.05, max_value=10080)
    max_bleu_loss = forms.FloatField(label=_("BLEU it may lose"), required=False, min_value=0, initial=1.0)
    max_megabytes = forms.FloatField(label=_("At most, in MB"), required=False, min_value=0.01, help_text=_("Size of the weights file."))

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        rows = ModelVersion.objects.filter(kind__in=COMPRESSIBLE).order_by("-id")
        self.fields["version"].queryset = rows
        self.fields["version"].choices = [(v.pk, f"{v.name} ({v.get_kind_display()})") for v in newest_and(rows, self["version"].value())]
        self.fields["student"].choices = [("", _("derived from the teacher")), *((p["name"], p["name"]) for p in presets())]
        for name in ("threshold", "sparsity", "minutes", "max_bleu_loss", "max_megabytes"):
            self.fields[name].widget.attrs["step"] = "any"

    def clean(self):
        data = super().clean()
        if data.get("method") == "prune" and data.get("threshold") and data.get("sparsity"):
            self.add_error("sparsity", _("Give a threshold or a sparsity, not both."))
        return data

    def options(self) -> dict:
        """What the chosen method is given: only its own fields, only those that were filled in."""
        data = self.cleaned_data
        found = {name: data[name] for name in FIELDS[data["method"]] if data.get(name) not in (None, "")}
        if found.get("structure") == "2:4":  # decides the share itself
            found = {"structure": "2:4"}
        if (megabytes := found.pop("max_megabytes", None)) is not None:
            found["max_bytes"] = int(megabytes * 1_000_000)
        return found
