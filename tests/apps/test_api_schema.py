import io
from contextlib import redirect_stderr

import pytest
from django.core.management import call_command


def test_the_openapi_document_is_valid_and_made_without_a_warning(tmp_path):
    said = io.StringIO()
    with redirect_stderr(said):
        call_command("spectacular", "--validate", "--fail-on-warn", "--file", str(tmp_path / "schema.yml"))

    assert said.getvalue() == ""
    document = (tmp_path / "schema.yml").read_text()
    for path in ("/api/v1/datasets/{id}/process/", "/api/v1/training-jobs/{id}/events/", "/api/v1/generate/", "/v1/chat/completions"):
        assert path in document


@pytest.mark.django_db
def test_the_document_and_its_reference_load_for_whoever_is_signed_in(client, viewer):
    assert client.get("/api/schema/").status_code in (401, 403)
    client.force_login(viewer)

    page = client.get("/api/schema/reference/")

    assert page.status_code == 200
    assert "'unsafe-inline'" not in page["Content-Security-Policy"]
    assert "<script>" not in page.content.decode()
    assert "<style" not in page.content.decode()
    assert client.get("/api/schema/").status_code == 200
