from django.db import models

from apps.jobs.models import Job


class BatchJob(Job):
    """Many prompts answered by one version; prompts and answers are files, the row holds facts."""

    KIND = Job.Kind.BATCH

    model_version = models.ForeignKey("registry.ModelVersion", on_delete=models.PROTECT, related_name="batch_jobs")
    dataset = models.ForeignKey("datasets.Dataset", null=True, on_delete=models.PROTECT, related_name="batch_jobs")
    prompts = models.CharField(max_length=200, blank=True, help_text="below the artifacts, where no dataset is named")
    prompts_name = models.CharField(max_length=120, help_text="of the file or dataset, for people")
    answers = models.CharField(max_length=200, blank=True, help_text="below the artifacts; set when it succeeded")
