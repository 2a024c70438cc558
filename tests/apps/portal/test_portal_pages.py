"""Home, the palette and help, as people of each role see them."""

import pytest
from django.test import Client

from apps.demonstration.models import Demonstration
from apps.jobs import services as jobs
from apps.jobs.models import Job
from apps.registry import services as registry
from tests.apps import making


def signed_in(user) -> Client:
    client = Client()
    client.force_login(user)
    return client


@pytest.fixture
def operator_page(operator) -> Client:
    return signed_in(operator)


@pytest.fixture
def waiting_version(operator):
    """v1 is live; v2 beat it by more than 5 % and waits."""
    data = making.processed(operator)
    held_out = registry.newest_set()
    live = making.version("v1", state="live", run=data.current_run)
    making.evaluated(live, held_out, bleu=60.0)
    better = making.version("v2", run=data.current_run)
    making.evaluated(better, held_out, bleu=75.0)
    assert registry.decide(better).passed
    return better


def test_home_of_an_empty_portal_says_what_to_do_first(operator_page):
    page = operator_page.get("/").content.decode()
    assert "No version is live yet." in page
    assert "Upload text to begin the loop." in page


def test_home_offers_to_promote_a_version_that_passed_its_gate(operator_page, waiting_version):
    page = operator_page.get("/").content.decode()
    assert "v2 beats it by 25.0 % and waits for you." in page
    assert f'action="/models/{waiting_version.pk}/promote/"' in page


def test_home_shows_a_viewer_the_same_without_its_buttons(viewer, waiting_version):
    page = signed_in(viewer).get("/").content.decode()
    assert "v2 passed its gate" in page
    assert "/promote/" not in page


def test_home_names_a_failed_job_until_it_is_begun_again(operator, operator_page):
    data = making.dataset(operator, "broken")
    from apps.datasets.services import process

    run = process(dataset=data, actor=operator)
    job = Job.objects.get(pk=run.pk)
    jobs.move(job, Job.Status.RUNNING, attempt=1)
    jobs.fail(job, "The file has no row that can be used.")
    assert "The file has no row that can be used." in operator_page.get("/?fragment=1").content.decode()
    process(dataset=data, actor=operator)
    assert "The file has no row that can be used." not in operator_page.get("/?fragment=1").content.decode()


def test_home_shows_the_first_turn_from_its_first_second(operator_page):
    Demonstration.objects.create()
    page = operator_page.get("/?fragment=1").content.decode()
    assert "The first turn of the loop is running" in page
    assert page.count('class="demo-stage demo-waiting"') == 7


def test_home_asks_the_database_a_dozen_times_whatever_the_number_of_rows(operator, operator_page, waiting_version, django_assert_max_num_queries):
    for n in range(30):
        making.dataset(operator, f"dataset {n}")
        making.version(f"old {n}", state="retired")
        making.answer(waiting_version, operator)
    operator_page.get("/")
    with django_assert_max_num_queries(13):  # one of them is the person's own row
        operator_page.get("/?fragment=1")


def test_the_palette_finds_rows_by_a_part_of_their_name(operator, operator_page):
    making.dataset(operator, "Packages of Debian")
    found = operator_page.get("/palette/?fragment=1&q=debian").content.decode()
    assert 'role="option"' in found
    assert "Packages of Debian" in found


def test_the_palette_offers_a_viewer_no_action_that_writes(viewer):
    found = signed_in(viewer).get("/palette/?fragment=1").content.decode()
    assert "Ask a question" in found
    assert "Upload text" not in found


def test_the_palette_shows_markup_in_names_as_text(operator, operator_page):
    making.dataset(operator, "<script>alert(1)</script>")
    assert "<script>alert" not in operator_page.get("/palette/?fragment=1&q=script").content.decode()


@pytest.mark.parametrize("path", ["/", "/palette/", "/help/"])
def test_pages_send_strangers_to_the_sign_in(db, path):
    assert Client().get(path)["Location"].startswith("/login/")


def test_help_names_the_key_of_every_station(operator_page):
    assert "<kbd>g</kbd> <kbd>d</kbd>" in operator_page.get("/help/").content.decode()
