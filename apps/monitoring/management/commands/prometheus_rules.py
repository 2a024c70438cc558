from django.core.management.base import BaseCommand

from apps.monitoring.prometheus_rules import document


class Command(BaseCommand):
    help = "Print the alert rules as a rules file for Prometheus (deploy/prometheus/rules.yml is one)."

    def handle(self, *args, **options) -> None:
        self.stdout.write(document(), ending="")
