"""Ratings, and the dataset they become."""

from django.db import transaction
from django.utils.translation import gettext as _

from apps.accounts.models import User
from apps.accounts.problems import Conflict, Problem, Refused
from apps.accounts.services import record
from apps.datasets import services as datasets
from apps.datasets.models import Dataset
from apps.feedback.models import Feedback
from apps.serving.models import Answer
from apps.serving.pictures import picture_of


@transaction.atomic
def rate(
    *, answer: Answer, rating: int, user: User | None, comment: str | None = None, correction: str | None = None, source: str = ""
) -> tuple[Feedback, bool]:
    """Rate an answer, or change its rating: one row an answer, whatever happens at once. Returns the row and whether it is new.

    A guest (`user` is None) rates a guest's answer; whether it is the guest's own is known to the caller, who has the session.
    """
    if not isinstance(rating, int) or isinstance(rating, bool) or not 1 <= rating <= 5:
        raise Problem(_("A rating is a whole number from 1 to 5."), field="rating")
    if answer.user_id != (user.pk if user else None) and not (user and user.may_operate):
        raise Refused(_("Only the person who asked may rate this answer."))
    given = {"rating": rating, "user": user, "dataset": None}
    given |= {name: text for name, text in (("comment", comment), ("correction", correction)) if text is not None}
    row, created = Feedback.objects.select_for_update().get_or_create(answer=answer, defaults=given)
    before = {} if created else {"rating": row.rating}
    if not created:
        for name, value in given.items():
            setattr(row, name, value)
    row.full_clean(exclude=["answer", "user", "dataset"])
    row.save()
    record(user, "feedback.create" if created else "feedback.update", row, before=before, after={"rating": rating}, source=source)
    return row, created


@transaction.atomic
def correct(*, row: Feedback, correction: str, actor: User, source: str = "") -> Feedback:
    """Say what the answer should have been. The rating stays its giver's; the row counts as new, so that the next dataset has the correction."""
    correction = correction.strip()
    if not correction:
        raise Problem(_("Write what the answer should have been."), field="correction")
    if len(correction) > 4000:
        raise Problem(_("A correction has at most 4,000 characters."), field="correction")
    before = row.correction
    if correction != before:
        row.correction, row.dataset = correction, None
        row.save(update_fields=["correction", "dataset", "updated_at"])
        record(actor, "feedback.correct", row, before={"correction": before[:200]}, after={"correction": correction[:200]}, source=source)
    return row


@transaction.atomic
def make_dataset(*, name: str = "", actor: User, source: str = "") -> Dataset:
    """All ratings that are in no dataset yet become one, ready to be processed and trained on."""
    rows = list(Feedback.objects.select_related("answer").filter(dataset=None).order_by("id"))
    if not rows:
        raise Conflict(_("There are no new ratings: every one is part of a dataset already."))
    records = [
        {
            "id": row.pk,
            "question": row.answer.prompt,
            "answer": row.answer.text,
            "rating": row.rating,
            **({"correction": row.correction} if row.correction else {}),
            **({"image": picture} if (picture := picture_of(row.answer.messages)) else {}),
        }
        for row in rows
    ]
    dataset = datasets.create_from_records(
        name=name or f"{len(rows)} ratings", records=records, actor=actor, origin=Dataset.Origin.FEEDBACK, source=source
    )
    Feedback.objects.filter(pk__in=[row.pk for row in rows]).update(dataset=dataset)
    return dataset
