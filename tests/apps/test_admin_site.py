import pytest
from django.contrib import admin

from apps.accounts.models import User
from tests.apps import making

pytestmark = pytest.mark.django_db


@pytest.fixture
def browser(client, person):
    user = person("admin")
    User.objects.filter(pk=user.pk).update(is_staff=True, is_superuser=True)
    client.force_login(user)
    return client


@pytest.mark.parametrize("model", sorted(admin.site._registry, key=str), ids=lambda model: model.__name__)
def test_the_admin_site_shows_rows_and_changes_none(browser, operator, model):
    version = making.version("v1", run=making.processed(operator).current_run)
    making.answer(version, operator)
    name = f"{model._meta.app_label}/{model._meta.model_name}"

    assert browser.get(f"/admin/{name}/").status_code == 200
    assert browser.get(f"/admin/{name}/add/").status_code == 403
