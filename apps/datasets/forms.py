from django import forms
from django.utils.translation import gettext_lazy as _


class UploadForm(forms.Form):
    file = forms.FileField(
        label=_("File"), allow_empty_file=True, max_length=200,
        error_messages={"required": _("Choose a file: JSONL, CSV, Parquet or plain text.")},
    )  # fmt: skip
    name = forms.CharField(label=_("Name"), max_length=120, widget=forms.TextInput(attrs={"data-name-from-file": "", "autocomplete": "off"}))
    process = forms.BooleanField(label=_("Process at once"), required=False, initial=True)
