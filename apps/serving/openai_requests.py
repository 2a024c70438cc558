"""OpenAI's requests, as far as they can be honoured; what would be silently ignored, and changes the answer, is refused."""

import base64
import json
from array import array
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StrictInt, ValidationInfo, field_validator, model_validator

from apps.serving.pictures import MAX_CHARACTERS as MAX_PICTURE_CHARACTERS
from apps.serving.pictures import accepted
from apps.serving.questions import MAX_CHARACTERS, MAX_LOGPROBS, MAX_SEED, MAX_TOKENS, Question

DEFAULT_MAX_TOKENS = 256
MAX_CHOICES = 8
MAX_TEXTS = 256


def _not_offered(value: Any) -> Any:
    if value not in (None, False, 0, "", "none", []):
        raise ValueError("this is not offered here; leave it out")
    return value


NotOffered = Annotated[Any, AfterValidator(_not_offered)]  # ignoring it would change the answer


class StreamOptions(BaseModel):
    model_config = ConfigDict(extra="ignore")

    include_usage: bool = False


class NamedSchema(BaseModel):
    model_config = ConfigDict(extra="ignore", populate_by_name=True)  # `strict` changes nothing: the schema is always kept to

    given: dict[str, Any] = Field(alias="schema")


class ResponseFormat(BaseModel):
    model_config = ConfigDict(extra="ignore")

    type: Literal["text", "json_object", "json_schema"]
    json_schema: NamedSchema | None = None

    @model_validator(mode="after")
    def _has_its_schema(self) -> "ResponseFormat":
        if (self.type == "json_schema") != (self.json_schema is not None):
            raise ValueError("json_schema belongs to the type json_schema, and that needs it")
        return self

    @property
    def schema_text(self) -> str | None:
        """JSON Schema; None for free text. The order of properties is theirs: answers keep to it."""
        if self.type == "text":
            return None
        return json.dumps(self.json_schema.given if self.json_schema else {"type": "object"})


class Request(BaseModel):
    """What both endpoints have. Fields that change nothing here (`store`, `metadata`, …) are ignored."""

    model_config = ConfigDict(extra="ignore", protected_namespaces=())

    model: Annotated[str, Field(min_length=1, max_length=200)]
    max_tokens: StrictInt | None = Field(None, ge=1)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: StrictInt | None = Field(None, ge=-1)  # not OpenAI's, but vLLM's and common
    min_p: float | None = None  # as top_k
    repetition_penalty: float | None = None  # as top_k
    n: StrictInt | None = Field(None, ge=1, le=MAX_CHOICES)
    stop: str | list[str] | None = None
    seed: StrictInt | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: str | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    logit_bias: dict[str, float] | None = None
    guided_regex: str | None = Field(None, min_length=1)  # as top_k
    response_format: ResponseFormat | None = None
    tool_choice: Any = None
    tools: Any = None
    functions: NotOffered = None
    function_call: NotOffered = None
    echo: NotOffered = None
    suffix: NotOffered = None
    best_of: StrictInt | None = None
    # vLLM's
    guided_json: NotOffered = None  # a response_format says the same
    guided_choice: NotOffered = None
    guided_grammar: NotOffered = None
    structured_outputs: NotOffered = None
    stop_token_ids: NotOffered = None
    min_tokens: NotOffered = None
    ignore_eos: NotOffered = None
    use_beam_search: NotOffered = None

    text_param: ClassVar[str]

    @field_validator("tool_choice")
    @classmethod
    def _none_is_chosen(cls, choice: Any) -> Any:
        if choice not in (None, "none", "auto"):
            raise ValueError("no tools are offered, so none can be chosen")
        return choice

    @field_validator("tools")
    @classmethod
    def _none_is_used(cls, tools: Any, info: ValidationInfo) -> Any:
        if tools and info.data.get("tool_choice") != "none":
            raise ValueError("these are not offered: the models here answer in text, and call nothing")
        return tools

    @field_validator("best_of")
    @classmethod
    def _all_are_given(cls, best_of: int | None, info: ValidationInfo) -> int | None:
        if best_of not in (None, info.data.get("n") or 1):
            raise ValueError("no other number than n is offered")
        return best_of

    @model_validator(mode="after")
    def _one_form(self) -> Self:
        if self.guided_regex and self.response_format and self.response_format.schema_text:
            raise ValueError("ask for a response_format or for guided_regex, not for both")
        return self

    @property
    def choices(self) -> int:
        return self.n or 1

    @property
    def include_usage(self) -> bool:
        return bool(self.stream_options and self.stream_options.include_usage)

    def _question(self, messages: list[dict], max_tokens: int | None, logprobs: int | None) -> Question:
        return Question(
            messages,
            # Clients ask for thousands by default; a shorter limit is told by finish_reason.
            max_tokens=min(max_tokens or DEFAULT_MAX_TOKENS, MAX_TOKENS),
            temperature=self.temperature or 0.0,  # as in the model's own generation_config.json
            top_p=self.top_p if self.top_p is not None else 1.0,
            top_k=max(0, self.top_k or 0),
            seed=self.seed & MAX_SEED if self.seed is not None else None,
            stop=[self.stop] if isinstance(self.stop, str) else list(self.stop or []),
            min_p=self.min_p or 0.0,
            presence_penalty=self.presence_penalty or 0.0,
            frequency_penalty=self.frequency_penalty or 0.0,
            repetition_penalty=self.repetition_penalty if self.repetition_penalty is not None else 1.0,
            logit_bias=self.logit_bias or {},
            logprobs=logprobs,
            schema=self.response_format.schema_text if self.response_format else None,
            regex=self.guided_regex,
        )


class TextPart(BaseModel):
    model_config = ConfigDict(extra="ignore")

    type: Literal["text"]
    text: str


class ImageUrl(BaseModel):
    model_config = ConfigDict(extra="ignore")  # `detail` changes nothing: every picture is seen in the model's own size

    url: str = Field(max_length=MAX_PICTURE_CHARACTERS)


class ImagePart(BaseModel):
    model_config = ConfigDict(extra="ignore")

    type: Literal["image_url"]
    image_url: ImageUrl


Part = Annotated[TextPart | ImagePart, Field(discriminator="type")]


class Message(BaseModel):
    model_config = ConfigDict(extra="ignore")

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[Part] | None = None

    @model_validator(mode="after")
    def _one_picture(self) -> "Message":
        if len(self._pictures()) > 1:
            raise ValueError("one picture a message can be looked at; send the others in messages of their own")
        return self

    def _pictures(self) -> list[str]:
        return [part.image_url.url for part in self.content if isinstance(part, ImagePart)] if isinstance(self.content, list) else []

    def plain(self) -> dict:
        """Role, content and image. Raises Problem for a picture that cannot be used."""
        parts = self.content if isinstance(self.content, list) else []
        text = self.content if isinstance(self.content, str) else "".join(part.text for part in parts if isinstance(part, TextPart))
        pictures = self._pictures()
        image = {"image": accepted(pictures[0])} if pictures else {}
        return {"role": "system" if self.role == "developer" else self.role, "content": text, **image}


class ChatRequest(Request):
    messages: list[Message] = Field(min_length=1)
    max_completion_tokens: StrictInt | None = Field(None, ge=1)
    logprobs: bool | None = None
    top_logprobs: StrictInt | None = Field(None, ge=0, le=MAX_LOGPROBS)
    modalities: list[Literal["text"]] | None = None
    audio: NotOffered = None
    web_search_options: NotOffered = None

    text_param: ClassVar[str] = "messages"

    @field_validator("top_logprobs")
    @classmethod
    def _with_logprobs(cls, top_logprobs: int | None, info: ValidationInfo) -> int | None:
        if top_logprobs is not None and not info.data.get("logprobs"):
            raise ValueError("this needs logprobs to be true")
        return top_logprobs

    def question(self) -> Question:
        logprobs = (self.top_logprobs or 0) if self.logprobs else None
        return self._question([message.plain() for message in self.messages], self.max_completion_tokens or self.max_tokens, logprobs)


class CompletionRequest(Request):
    prompt: str | list[str]
    logprobs: StrictInt | None = Field(None, ge=0, le=MAX_LOGPROBS)

    text_param: ClassVar[str] = "prompt"

    @field_validator("prompt")
    @classmethod
    def _one_prompt(cls, prompt: str | list[str]) -> str | list[str]:
        if isinstance(prompt, list) and len(prompt) != 1:
            raise ValueError("one prompt is answered at a time, given as text")
        return prompt

    def question(self) -> Question:
        prompt = self.prompt if isinstance(self.prompt, str) else self.prompt[0]
        return self._question([{"role": "user", "content": prompt}], self.max_tokens, self.logprobs)


class EmbeddingsRequest(BaseModel):
    model_config = ConfigDict(extra="ignore", protected_namespaces=())

    model: Annotated[str, Field(min_length=1, max_length=200)]
    input: str | list[Any]
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: StrictInt | None = None

    text_param: ClassVar[str] = "input"

    @field_validator("input")
    @classmethod
    def _texts(cls, given: str | list[Any]) -> str | list[Any]:
        texts = [given] if isinstance(given, str) else given
        if not all(isinstance(text, str) for text in texts):
            raise ValueError("give a text or a list of texts; ids of tokens are those of another model's tokenizer")
        if not 1 <= len(texts) <= MAX_TEXTS:
            raise ValueError(f"give between 1 and {MAX_TEXTS} texts")
        if any(not text or len(text) > MAX_CHARACTERS for text in texts):
            raise ValueError(f"each text must have between 1 and {MAX_CHARACTERS:,} characters")
        return given

    @field_validator("dimensions")
    @classmethod
    def _whole(cls, dimensions: int | None) -> int | None:
        if dimensions is not None:
            raise ValueError("embeddings cannot be shortened: the model was not trained for that; leave dimensions out")
        return dimensions

    @property
    def texts(self) -> list[str]:
        return [self.input] if isinstance(self.input, str) else self.input

    def encoded(self, vector: array) -> list[float] | str:
        """`vector`: of 32-bit floats, little-endian in base64."""
        return vector.tolist() if self.encoding_format == "float" else base64.b64encode(vector.tobytes()).decode()
