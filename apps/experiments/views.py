"""A/B tests: plan, start, read, stop, decide."""

from dataclasses import dataclass

from django.contrib import messages
from django.contrib.auth.decorators import login_required
from django.core.exceptions import PermissionDenied
from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.utils.translation import gettext as _

from apps.accounts.problems import Problem
from apps.experiments import selectors, services
from apps.experiments.forms import PlanForm
from apps.experiments.models import Experiment
from apps.experiments.statistics import Interval, deviation_of, observations_needed
from apps.portal.pages import action, page_of, refuse
from apps.registry.models import ModelVersion
from apps.rest import source_of

WORTH_KNOWING = 0.3  # a difference of ratings that one would act on
RANGE_WIDTH = 200.0  # of the drawing


@login_required
def experiments(request: HttpRequest) -> HttpResponse:
    form = PlanForm(request.POST or None, initial=_initial(request))
    if request.method == "POST":
        if not request.user.may_operate:
            raise PermissionDenied
        if form.is_valid():
            try:
                return redirect("experiment", _planned(request, form).pk)
            except Problem as problem:
                refuse(form, problem)
    page = page_of(selectors.experiments(), request)
    enough = ModelVersion.objects.all()[:2].count() > 1
    return render(request, "experiments/list.html", {"section": "experiments", "form": form, "page": page, "enough_versions": enough})


def _initial(request: HttpRequest) -> dict:
    """The live version against the one the link names, or the newest candidate."""
    live = ModelVersion.objects.filter(state=ModelVersion.State.LIVE).first()
    candidates = ModelVersion.objects.filter(state=ModelVersion.State.CANDIDATE)
    wanted = request.GET.get("treatment", "")
    return {"control": live, "treatment": candidates.filter(pk=wanted).first() or candidates.first()}


def _planned(request: HttpRequest, form: PlanForm) -> Experiment:
    given, source = dict(form.cleaned_data), source_of(request)
    start = given.pop("start")
    given["split"] /= 100
    experiment = services.create(**given, actor=request.user, source=source)
    if start:
        try:
            services.start(experiment=experiment, actor=request.user, source=source)
        except Problem as problem:  # another one is running: the plan is kept
            messages.warning(request, _("The plan is kept as a draft. %(why)s") % {"why": problem.detail})
    return experiment


@dataclass(frozen=True)
class Range:
    """A mean with its interval, as places on a drawing of RANGE_WIDTH; `low` and `width` are None where there is too little."""

    value: float | None
    low: float | None
    width: float | None

    @classmethod
    def of(cls, figures: dict, smallest: float, largest: float) -> "Range":
        def place(value: float) -> float:
            return max(0.0, min(RANGE_WIDTH, (value - smallest) / (largest - smallest) * RANGE_WIDTH))

        if figures["value"] is None:
            return cls(None, None, None)
        if figures["low"] is None:
            return cls(place(figures["value"]), None, None)
        low = place(figures["low"])
        return cls(place(figures["value"]), low, max(1.0, place(figures["high"]) - low))


@login_required
def experiment(request: HttpRequest, pk: str) -> HttpResponse:
    row = get_object_or_404(selectors.experiments(), pk=pk)
    results = selectors.results(row)
    arms = []
    for name in selectors.ARMS:
        figures = results["arms"][name]
        ranges = {"rating": Range.of(figures["rating"], 1, 5), "accuracy": Range.of(figures["accuracy"], 0, 1)}
        label = _("Control") if name == "control" else _("Treatment")
        arms.append({**figures, "name": name, "label": label, "version": getattr(row, name), "ranges": ranges})
    subjects = sum(arm["subjects"] for arm in arms)
    values = {
        "section": "experiments", "experiment": row, "results": results, "arms": arms, "subjects": subjects,
        "treatment_share": arms[1]["subjects"] / subjects if subjects else None,
        "ratio_fits": results["sample_ratio_p_value"] is None or results["sample_ratio_p_value"] >= selectors.SUSPICIOUS_RATIO_P,
        "winner": _winner(row, results), "needed": _needed(results),
    }  # fmt: skip
    return render(request, "experiments/_results.html" if "fragment" in request.GET else "experiments/detail.html", values)


def _winner(row: Experiment, results: dict) -> ModelVersion | None:
    """The better rated version, once the difference is clear and the arms' sizes are as planned."""
    p, ratio = results["rating_p_value"], results["sample_ratio_p_value"]
    if p is None or p >= selectors.SIGNIFICANT_P or (ratio is not None and ratio < selectors.SUSPICIOUS_RATIO_P):
        return None
    return row.treatment if results["rating_difference"] > 0 else row.control


def _needed(results: dict) -> dict | None:
    """Ratings each arm needs before a difference worth knowing would show; None until there are some to tell their spread from."""
    ratings = [Interval(**results["arms"][arm]["rating"]) for arm in selectors.ARMS]
    spreads = [spread for interval in ratings if (spread := deviation_of(interval))]
    if not spreads:
        return None
    spread = max(spreads)
    needed = observations_needed(spread, WORTH_KNOWING)
    have = min(interval.count for interval in ratings)
    return {
        "spread": spread,
        "difference": WORTH_KNOWING,
        "needed": needed,
        "have": have,
        "left": max(0, needed - have),
        "share": min(1.0, have / needed),
    }


@action
def experiment_start(request: HttpRequest, pk: str) -> HttpResponse:
    row = services.start(experiment=get_object_or_404(Experiment, pk=pk), actor=request.user, source=source_of(request))
    messages.success(request, _("Started: new conversations are split from now on."))
    return redirect("experiment", row.pk)


@action
def experiment_stop(request: HttpRequest, pk: str) -> HttpResponse:
    row = services.stop(experiment=get_object_or_404(Experiment, pk=pk), actor=request.user, source=source_of(request))
    messages.success(request, _("Stopped: everybody gets the live version again. The figures stay."))
    return redirect("experiment", row.pk)
