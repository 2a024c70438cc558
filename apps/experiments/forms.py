from django import forms
from django.utils.translation import gettext_lazy as _

from apps.experiments.services import METRICS
from apps.registry.models import ModelVersion

METRIC_LABELS = {"rating": _("rating"), "accuracy": _("accuracy"), "recall": _("recall"), "latency": _("latency")}


class PlanForm(forms.Form):
    control = forms.ModelChoiceField(ModelVersion.objects.none(), label=_("Control"), help_text=_("What people get today."))
    treatment = forms.ModelChoiceField(ModelVersion.objects.none(), label=_("Treatment"), help_text=_("What may be better."))
    split = forms.IntegerField(
        label=_("Share of the treatment, %"),
        min_value=1,
        max_value=99,
        initial=50,
        help_text=_("Of the conversations. Half and half is clear soonest."),
    )
    metrics = forms.MultipleChoiceField(
        label=_("Figures"), choices=[(name, METRIC_LABELS[name]) for name in METRICS], initial=list(METRICS), widget=forms.CheckboxSelectMultiple
    )
    name = forms.CharField(label=_("Name"), max_length=120, required=False)
    start = forms.BooleanField(label=_("Start at once"), required=False, initial=True)

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        versions = ModelVersion.objects.order_by("-id")
        for name in ("control", "treatment"):
            self.fields[name].queryset = versions
            self.fields[name].empty_label = _("Choose a version")
