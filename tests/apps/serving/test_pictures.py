"""Questions about pictures over HTTP, answered by a real model whose answer depends on the picture."""

import base64
import io
from pathlib import Path

import numpy as np
import openai
import pytest
import torch
from django.conf import settings
from django.core.files.uploadedfile import SimpleUploadedFile
from PIL import Image

from apps import artifacts
from apps.feedback.models import Feedback
from apps.feedback.services import make_dataset
from apps.ids import new_id
from apps.registry import services as registry
from apps.registry.models import ModelVersion
from apps.serving.answer_log import answers as logged
from tests.apps import making
from tests.apps.conftest import Api
from workers.engine import open_engine
from workers.moe import ChatTokenizer, Decoder, ModelConfig, as_data_url, save_model
from workers.tasks.answers import engines

pytestmark = pytest.mark.django_db


def picture(seed: int, side: int = 16) -> str:
    return as_data_url(Image.fromarray(np.random.default_rng(seed).integers(0, 256, (side, side, 3), np.uint8)))


@pytest.fixture
def sees(db, answers_with):
    tokenizer = ChatTokenizer.train(["What colour is it? It is red, and blue."] * 4, 400, pictures=True)
    config = ModelConfig(tokenizer.vocab_size, 32, 2, 4, 2, 8, 16, 4, 2, tie_embeddings=False, max_seq_len=128, image_size=16, patch_size=8)
    model, generator = Decoder(config), torch.Generator().manual_seed(3)
    model.initialise(generator)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(6 if parameter.dim() > 1 else 1)
    folder = Path(settings.WORK_ROOT) / new_id()
    save_model(folder, model, tokenizer, "A test.")
    engine = open_engine(folder, max_batch=4)
    result = {"total_parameters": 1000, "active_parameters": 500, "config": config.as_dict()}
    version = registry.register_version(kind="moe", folder=folder, parent=None, run=None, result=result, actor=None, name="seer")
    ModelVersion.objects.filter(pk=version.pk).update(state="live")
    engines.hold(version.pk, engine)
    yield version
    engines.let_go(version.pk)


def ask(client, seed: int | None, **more):
    shown = {"image": picture(seed)} if seed is not None else {}
    return client.post("/api/v1/generate/", {"prompt": "What colour is it?", "max_tokens": 12, **shown, **more})


def test_the_answer_and_its_cache_depend_on_the_picture(as_viewer, sees):
    first, other, blind, again = (ask(as_viewer, seed).json() for seed in (0, 1, None, 0))

    assert len({a["text"] for a in (first, other, blind)}) == 3
    assert first["usage"]["prompt_tokens"] == blind["usage"]["prompt_tokens"] + 4
    assert (again["text"], again["cached"]) == (first["text"], True)
    assert not other["cached"] and not blind["cached"]


def test_a_photograph_is_kept_small(as_viewer, sees):
    answer = as_viewer.post("/api/v1/generate/", {"prompt": "What is it?", "image": picture(0, 700), "max_tokens": 2}).json()

    kept = logged().get(pk=answer["answer"]).messages[0]["image"]
    assert Image.open(io.BytesIO(base64.b64decode(kept.partition(",")[2]))).size == (256, 256)


@pytest.mark.parametrize(("image", "said"), [("https://example.org/a.png", "not fetched"), ("data:image/png;base64,AAAA", "no PNG or JPEG")])
def test_what_is_no_picture_is_refused(as_viewer, sees, image, said):
    refused = as_viewer.post("/api/v1/generate/", {"prompt": "What is it?", "image": image})

    assert (refused.status_code, list(refused.json()["errors"])) == (400, ["image"])
    assert said in refused.json()["detail"]
    assert not logged().exists()


def test_a_version_without_a_front_end_says_what_to_do(as_viewer, answers_with):
    answers_with(making.version("v1", state="live"))

    refused = ask(as_viewer, 0)

    assert refused.status_code == 400
    assert "v1 reads text only" in refused.json()["detail"]


def test_a_chat_about_a_picture_goes_on_and_a_version_without_eyes_may_take_over(as_viewer, viewer, sees, answers_with):
    def say(message, **more):
        return as_viewer.stream(as_viewer.post("/api/v1/chat/", {"message": message, "max_tokens": 8, **more}))

    first = say("What colour is it?", image=picture(0))[0]
    second = say("And now?", conversation=first["conversation"])[0]
    assert logged().get(pk=second["answer"]).messages[0]["image"] == picture(0)

    answers_with(making.version("v1"))
    third = say("And in words?", conversation=first["conversation"], version="v1")
    assert third[-1]["done"]
    assert not any(m.get("image") for m in logged().get(pk=third[0]["answer"]).messages)
    as_viewer.force_login(viewer)
    page = as_viewer.get(f"/chat/{first['conversation']}/").content.decode()
    assert page.count(picture(0)) == 1  # beside the question that it was sent with


def test_a_rated_answer_takes_its_picture_into_the_dataset(as_viewer, operator, sees):
    asked = ask(as_viewer, 0).json()["answer"]
    answer = logged().get(pk=asked)
    Feedback.objects.create(answer=answer, rating=1, correction="It is red.", user=None)

    dataset = make_dataset(actor=operator)

    with artifacts.open_file(dataset.files[0]["path"]) as file:
        assert picture(0) in file.read().decode()


@pytest.mark.django_db(transaction=True)
def test_openais_client_sends_a_picture(transactional_db, sees, live_server, person):
    token = Api(person("viewer")).defaults["HTTP_AUTHORIZATION"].removeprefix("Bearer ")
    client = openai.OpenAI(base_url=f"{live_server.url}/v1", api_key=token, max_retries=0)

    def content(url: str) -> list[dict]:
        return [{"type": "text", "text": "What colour is it?"}, {"type": "image_url", "image_url": {"url": url, "detail": "low"}}]

    said = [
        client.chat.completions.create(model="seer", max_tokens=12, messages=[{"role": "user", "content": content(picture(seed))}]) for seed in (0, 1)
    ]
    assert said[0].choices[0].message.content != said[1].choices[0].message.content
    with pytest.raises(openai.BadRequestError, match="not fetched"):
        client.chat.completions.create(model="seer", messages=[{"role": "user", "content": content("https://example.org/a.png")}])
    with pytest.raises(openai.BadRequestError, match="one picture a message"):
        client.chat.completions.create(model="seer", messages=[{"role": "user", "content": content(picture(0)) + content(picture(1))[1:]}])


def test_the_page_without_scripts_sends_the_picture_as_a_file(client, viewer, sees):
    client.force_login(viewer)
    page = client.get("/chat/").content.decode()
    assert 'enctype="multipart/form-data"' in page and 'name="picture"' in page

    image = picture(0)
    file = SimpleUploadedFile("a.png", base64.b64decode(image.partition(",")[2]), "image/png")
    sent = client.post("/chat/", {"message": "What colour is it?", "picture": file}, follow=True)

    assert sent.status_code == 200
    assert logged().get().messages[0]["image"] == image
    refused = client.post("/chat/", {"message": "And this?", "picture": SimpleUploadedFile("a.png", b"no picture")})
    assert (refused.status_code, "no PNG or JPEG" in refused.content.decode()) == (400, True)


def test_the_page_offers_pictures_only_where_the_live_version_sees_them(client, viewer, answers_with):
    answers_with(making.version("v1", state="live"))
    client.force_login(viewer)

    assert 'name="picture"' not in client.get("/chat/").content.decode()
