from django.db.models import Avg, Count, QuerySet

from apps.feedback.models import Feedback


def feedback() -> QuerySet[Feedback]:
    return Feedback.objects.select_related("answer__model_version", "user", "dataset")


def summary() -> dict:
    """Mean rating, count, how many are in no dataset yet, how many of the low ones have no correction."""
    figures = Feedback.objects.aggregate(mean=Avg("rating"), count=Count("id"))
    figures["new"] = Feedback.objects.filter(dataset=None).count()
    figures["to_correct"] = Feedback.objects.filter(rating__lte=2, correction="", dataset=None).count()
    return figures


def by_rating() -> dict[int, int]:
    counted = dict(Feedback.objects.order_by().values_list("rating").annotate(Count("id")))
    return {rating: counted.get(rating, 0) for rating in range(5, 0, -1)}
