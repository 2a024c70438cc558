from django import forms
from django.utils.translation import gettext_lazy as _

from apps.datasets.models import Dataset
from apps.registry.forms import newest_and
from apps.registry.models import ModelVersion
from apps.serving.questions import MAX_CHARACTERS, MAX_TOKENS


class BatchForm(forms.Form):
    version = forms.ModelChoiceField(ModelVersion.objects.none(), label=_("Version"), empty_label=None)
    file = forms.FileField(
        label=_("File"), required=False, help_text=_("JSONL: one JSON object a line, with a prompt, a question or messages; other fields are kept.")
    )
    dataset = forms.ModelChoiceField(Dataset.objects.none(), label=_("Or a dataset"), required=False, empty_label=_("none"))
    system = forms.CharField(
        label=_("System message"), required=False, max_length=MAX_CHARACTERS, widget=forms.Textarea(attrs={"rows": 2}),
        help_text=_("Said before each prompt that brings none."),
    )  # fmt: skip
    max_tokens = forms.IntegerField(label=_("Tokens an answer may have"), min_value=1, max_value=MAX_TOKENS, initial=256)
    temperature = forms.FloatField(
        label=_("Temperature"), min_value=0, max_value=2, initial=0, help_text=_("0: the most likely answer, the same each time."),
        widget=forms.NumberInput(attrs={"step": "any"}),
    )  # fmt: skip

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        for name, rows in (("version", ModelVersion.objects.order_by("-id")), ("dataset", Dataset.objects.filter(format="jsonl").order_by("-id"))):
            self.fields[name].queryset = rows
            none = [("", _("none"))] if name == "dataset" else []
            self.fields[name].choices = [*none, *((row.pk, row.name) for row in newest_and(rows, self[name].value()))]

    def clean(self):
        data = super().clean()
        if bool(data.get("file")) == bool(data.get("dataset")) and "file" not in self.errors:
            self.add_error("file", _("Choose a file or a dataset: one of the two."))
        return data
