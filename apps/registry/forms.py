from django import forms
from django.db.models import Model, QuerySet
from django.utils.translation import gettext_lazy as _

from apps.registry.imports import ADAPTABLE
from apps.registry.models import CompressionJob, ModelVersion
from apps.training.selectors import presets

COMPRESSIBLE = (ModelVersion.Kind.MOE, ModelVersion.Kind.DENSE, ModelVersion.Kind.DISTILLED, ModelVersion.Kind.PRUNED, ModelVersion.Kind.INT8)
CHOICES_SHOWN = 60
STRUCTURES = [
    ("unstructured", _("single weights")), ("layer", _("single weights, as many of each layer")), ("2:4", _("two of every four")),
    ("neuron", _("whole neurons (faster)")), ("expert", _("whole experts (faster)")),
]  # fmt: skip
IMPORTANCE = [("magnitude", _("their weights")), ("use", _("what the dataset makes of them"))]
WEIGHTS = [("fp32", _("FP32: the same answers")), ("int8", _("INT8: a quarter of the bytes"))]
TARGETS = [("cpu", _("this portal's engine")), ("onnx", _("onnxruntime, on any device"))]
# Which fields belong to which method: the page shows them with it, the service is given no others.
FIELDS = {
    "int8": (),
    "prune": ("threshold", "sparsity", "structure", "importance", "recovery_minutes"),
    "distill": ("student", "minutes", "temperature"),
    "onnx": ("weights",),
    "policy": ("max_bleu_loss", "max_megabytes", "min_speed_ratio", "max_p99_ms", "target", "most_minutes"),
}


def newest_and(rows: QuerySet, chosen: str | None) -> list[Model]:
    """What a list offers: the newest rows, and the chosen one even where it is older."""
    found = list(rows[:CHOICES_SHOWN])
    if chosen and not any(row.pk == chosen for row in found):
        found += rows.filter(pk=chosen)
    return found


class ManyFiles(forms.FileInput):
    allow_multiple_selected = True

    def value_from_datadict(self, data, files, name):
        return files.getlist(name) if hasattr(files, "getlist") else files.get(name)


class FilesField(forms.FileField):
    """Several files of one folder; a list, empty where none was chosen."""

    widget = ManyFiles

    def clean(self, data, initial=None):
        return [super(FilesField, self).clean(file, initial) for file in data or []]


class ImportForm(forms.Form):
    name = forms.CharField(label=_("Name"), max_length=60, widget=forms.TextInput(attrs={"autocomplete": "off"}))
    path = forms.CharField(
        label=_("Path or URL"), max_length=500, required=False,
        help_text=_("Of a Hugging Face folder: in the portal's import folder, or at a place that the settings allow."),
    )  # fmt: skip
    files = FilesField(
        label=_("Or its files"), required=False, max_length=200,
        help_text=_("config.json, the .safetensors files, tokenizer.json and, where there are, tokenizer_config.json, chat_template.jinja, generation_config.json."),
    )  # fmt: skip

    parent = forms.ModelChoiceField(
        ModelVersion.objects.none(), label=_("Parent"), required=False, empty_label=_("none: the folder is a whole model"),
        help_text=_("For an adapter in PEFT's layout (adapter_config.json, adapter_model.safetensors): the version it is added to."),
    )  # fmt: skip

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        rows = ModelVersion.objects.filter(kind__in=ADAPTABLE).order_by("-id")
        self.fields["parent"].queryset = rows
        self.fields["parent"].choices = [("", self.fields["parent"].empty_label), *((v.pk, v.name) for v in newest_and(rows, self["parent"].value()))]

    def clean(self):
        data = super().clean()
        if bool(data.get("path")) == bool(data.get("files")) and "files" not in self.errors:
            self.add_error("path", _("Give a path, or choose the folder's files: one of the two."))
        return data


class UpstreamForm(forms.Form):
    name = forms.CharField(label=_("Name"), max_length=60, widget=forms.TextInput(attrs={"autocomplete": "off"}), help_text=_("Of the version here."))
    base_url = forms.CharField(
        label=_("Address"), max_length=300, widget=forms.TextInput(attrs={"inputmode": "url", "placeholder": "http://gpu-1:8000/v1", "autocomplete": "off"}),
        help_text=_("Of the server's API, usually ending in /v1."),
    )  # fmt: skip
    model = forms.CharField(
        label=_("Model"), max_length=300, widget=forms.TextInput(attrs={"autocomplete": "off"}), help_text=_("As the server calls it.")
    )
    key = forms.CharField(
        label=_("Name of its key"), max_length=40, required=False, widget=forms.TextInput(attrs={"autocomplete": "off"}),
        help_text=_("Never the key itself: for “gpu”, the variable DSPORTAL_UPSTREAM_KEY_GPU of the portal's environment holds it."),
    )  # fmt: skip


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
    importance = forms.ChoiceField(
        label=_("Measured by"),
        choices=IMPORTANCE,
        required=False,
        help_text=_("What neurons and experts are worth; single weights go by their size."),
    )
    recovery_minutes = forms.FloatField(
        label=_("Minutes of recovery"), required=False, min_value=0.05, max_value=10080, help_text=_("Training of what is left; none where empty.")
    )
    weights = forms.ChoiceField(label=_("Weights"), choices=WEIGHTS, required=False, initial="fp32")
    student = forms.ChoiceField(label=_("Student"), required=False, help_text=_("A preset, or a shape derived from the teacher's."))
    minutes = forms.FloatField(label=_("Minutes"), required=False, min_value=0.05, max_value=10080)
    temperature = forms.FloatField(
        label=_("Temperature"), required=False, min_value=0.05, max_value=100,
        help_text=_("The logits of teacher and student are divided by it; 1 where empty, and above it unlikely tokens count more."),
    )  # fmt: skip
    most_minutes = forms.FloatField(
        label=_("Minutes at most"), required=False, min_value=0.05, max_value=10080, help_text=_("Of all of it; a few where empty.")
    )
    max_bleu_loss = forms.FloatField(label=_("BLEU it may lose"), required=False, min_value=0, initial=1.0)
    max_megabytes = forms.FloatField(label=_("At most, in MB"), required=False, min_value=0.01, help_text=_("Size of the weights file."))

    min_speed_ratio = forms.FloatField(
        label=_("At least so many times the speed"),
        required=False,
        min_value=0.1,
        help_text=_("Of decoding, eight answers at a time, next to its parent: such as 2."),
    )
    max_p99_ms = forms.FloatField(label=_("P99 at most, in ms"), required=False, min_value=0.01, help_text=_("Of one answer on one core."))
    target = forms.ChoiceField(label=_("Runs on"), choices=TARGETS, required=False, initial="cpu")

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        rows = ModelVersion.objects.filter(kind__in=COMPRESSIBLE).order_by("-id")
        self.fields["version"].queryset = rows
        self.fields["version"].choices = [(v.pk, f"{v.name} ({v.get_kind_display()})") for v in newest_and(rows, self["version"].value())]
        self.fields["student"].choices = [("", _("derived from the teacher")), *((p["name"], p["name"]) for p in presets())]
        for name in (
            "threshold",
            "sparsity",
            "minutes",
            "temperature",
            "recovery_minutes",
            "most_minutes",
            "max_bleu_loss",
            "max_megabytes",
            "min_speed_ratio",
            "max_p99_ms",
        ):
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
            found = {name: value for name, value in found.items() if name not in ("threshold", "sparsity")}
        if found.get("structure") not in ("neuron", "expert"):
            found.pop("importance", None)
        for name in ("recovery_minutes", "most_minutes"):
            if (minutes := found.pop(name, None)) is not None:
                found["minutes"] = minutes
        if (megabytes := found.pop("max_megabytes", None)) is not None:
            found["max_bytes"] = int(megabytes * 1_000_000)
        return found
