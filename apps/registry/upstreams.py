"""A model that another server holds becomes a version: to chat with, evaluate, test against others and promote like any other."""

import shutil
import tempfile
from pathlib import Path

from django.conf import settings
from django.db import transaction
from django.utils.translation import gettext as _
from pydantic import ValidationError

from apps.accounts.models import User
from apps.accounts.problems import Problem
from apps.accounts.services import record
from apps.portal.retelling import retold
from apps.registry.imports import free_name
from apps.registry.models import ModelVersion
from apps.registry.services import evaluate, newest_set, register_version, take_naming_turn
from apps.registry.upstream_access import require_allowed
from workers.upstream.check import CannotBeUsed, check
from workers.upstream.spec import UPSTREAM_FILE, UpstreamSpec


def connect(
    *, name: str, base_url: str, model: str, key: str = "", checked: bool = True, actor: User | None, source: str = ""
) -> ModelVersion:  # fmt: skip
    """`key`: the name of the key, which the environment holds. `checked`: only if it answers now and has the model. Problem, Conflict."""
    name = free_name(name)
    spec = _spec(base_url=base_url.strip(), model=model.strip(), key=key.strip())
    require_allowed(spec)
    window = None
    if checked:
        try:
            window = check(spec).window
        except CannotBeUsed as refusal:
            raise Problem(retold(str(refusal)), field=refusal.field) from refusal
    version = _register(name, spec, window, actor, source)
    if newest_set():
        evaluate(version=version, actor=actor, source=source)
    return version


def _register(name: str, spec: UpstreamSpec, window: int | None, actor: User | None, source: str) -> ModelVersion:
    settings.WORK_ROOT.mkdir(parents=True, exist_ok=True)
    staged = Path(tempfile.mkdtemp(dir=settings.WORK_ROOT))
    try:
        folder = staged / "model"
        folder.mkdir()
        (folder / UPSTREAM_FILE).write_text(spec.model_dump_json(indent=1))
        about = spec.model_dump(exclude={"version"})
        # How many parameters it has is not known: the columns say 0, and the pages nothing.
        result = {"total_parameters": 0, "active_parameters": 0, "config": {"max_seq_len": window} if window else {}, "details": {"upstream": about}}
        with transaction.atomic():
            take_naming_turn()
            free_name(name)  # once more: to ask the other server took its time
            version = register_version(kind=ModelVersion.Kind.UPSTREAM, folder=folder, parent=None, run=None, result=result, actor=actor, name=name)
            record(actor, "version.connect", version, after=about, source=source)
        return version
    finally:
        shutil.rmtree(staged, ignore_errors=True)


def _spec(**given: str) -> UpstreamSpec:
    try:
        return UpstreamSpec(**given)
    except ValidationError as error:
        field = str(error.errors()[0]["loc"][0])
        said = {
            "base_url": _("Give an address such as http://host:8000/v1, without a user, a query or a fragment."),
            "model": _("Give the name that the model has there, at most 300 characters."),
            "key": _("Give the key's name, never the key: small letters, digits, - and _, at most 40."),
        }
        raise Problem(said[field], field=field) from error
