from django.apps import AppConfig


class BatchesConfig(AppConfig):
    name = "apps.batches"
    label = "batches"
    default_auto_field = "django.db.models.BigAutoField"

    def ready(self):
        from apps.batches import services  # noqa: F401 — registers how its jobs are run
