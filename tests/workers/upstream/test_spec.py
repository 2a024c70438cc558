import pytest
from pydantic import ValidationError

from workers.upstream.check import CannotBeUsed, check
from workers.upstream.spec import UpstreamSpec, is_allowed, is_upstream, key_of


@pytest.mark.parametrize(
    "address", ["file:///etc/passwd", "ftp://host/v1", "http://", "http://user:pass@host/v1", "http://host/v1?x=1", "http://host:99999/v1", "host:80/v1", "http://ho st/", "http://a\\@b/"]
)  # fmt: skip
def test_an_address_that_is_none_or_could_lead_elsewhere_is_refused(address):
    with pytest.raises(ValidationError):
        UpstreamSpec(base_url=address, model="m")


@pytest.mark.parametrize(
    ("hosts", "allowed"),
    [
        ([], False),
        (["gpu-1"], True),
        (["GPU-1:8000"], True),
        (["gpu-1:80"], False),
        (["gpu"], False),
        (["*.svc"], False),
        (["169.254.169.254"], False),
    ],
)
def test_only_hosts_that_the_settings_name_are_allowed(hosts, allowed):
    assert is_allowed(UpstreamSpec(base_url="http://gpu-1:8000/v1", model="m"), hosts) is allowed


def test_all_hosts_below_a_name_may_be_allowed_at_once():
    assert is_allowed(UpstreamSpec(base_url="https://a.serving.svc/v1", model="m"), ["*.serving.svc"])
    assert not is_allowed(UpstreamSpec(base_url="https://evilserving.svc/v1", model="m"), ["*.serving.svc"])


def test_a_key_comes_from_its_own_variable_or_from_the_file_that_it_names(tmp_path):
    spec = UpstreamSpec(base_url="http://host/v1", model="m", key="gpu-1")
    file = tmp_path / "key"
    file.write_text("of the file\n")
    assert key_of(spec, {}) is None
    assert key_of(spec, {"DSPORTAL_UPSTREAM_KEY_GPU_1": "plain", "DSPORTAL_SECRET_KEY": "no"}) == "plain"
    assert key_of(spec, {"DSPORTAL_UPSTREAM_KEY_GPU_1_FILE": str(file)}) == "of the file"
    assert key_of(UpstreamSpec(base_url="http://host/v1", model="m"), {}) == ""


def test_an_imported_model_never_is_an_upstream(tmp_path):
    (tmp_path / "upstream.json").write_text("{}")
    assert is_upstream(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    assert not is_upstream(tmp_path)


def test_a_check_names_what_is_wrong(spec):
    assert check(spec).window == 4096
    for changed, field, said in (
        ({"model": "other"}, "model", "it has: words"),
        ({"key": ""}, "key", "refuses the key"),
        ({"key": "unknown"}, "key", "DSPORTAL_UPSTREAM_KEY_UNKNOWN"),
        ({"base_url": "http://127.0.0.1:9/v1"}, "base_url", "does not answer"),
    ):
        with pytest.raises(CannotBeUsed, match=said) as refused:
            check(spec.model_copy(update=changed))
        assert refused.value.field == field
