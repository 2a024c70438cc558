"""The chat: conversations whose turns are answers' rows. Each answer remembers the whole conversation that was sent, so that
the newest one is the conversation, and answering an older one again makes a branch."""

from django.db import transaction
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from apps.accounts.models import User
from apps.accounts.problems import Missing, Problem
from apps.serving import services
from apps.serving.answer_log import answers
from apps.serving.context import within_limits
from apps.serving.models import Answer, Conversation
from apps.serving.pictures import accepted
from apps.serving.questions import MAX_CHARACTERS, Question
from apps.serving.services import Pending

MAX_TOKENS = 128
MAX_MESSAGE_CHARACTERS = MAX_CHARACTERS
NO_SUCH_CONVERSATION = gettext_lazy("There is no such conversation of yours.")
AGAIN_TEMPERATURE = 0.8  # the same question at temperature 0 would give the same answer again


def conversations_of(user: User | None, guest_ids: list[str] | tuple[str, ...] = ()):
    """A person's own; a guest's are those that the browser's session remembers."""
    if user is not None and user.pk:
        return Conversation.objects.filter(user=user)
    return Conversation.objects.filter(user=None, pk__in=list(guest_ids))


def find_conversation(*, pk: str, user: User | None, guest_ids=()) -> Conversation:
    found = conversations_of(user, guest_ids).filter(pk=pk).first()
    if found is None:
        raise Missing(str(NO_SUCH_CONVERSATION), field="conversation")
    return found


def find_answer(*, pk: str, user: User | None, guest_ids=()) -> Answer:
    """An answer to rate. A guest finds only those in the conversations of the session; who may rate another's is the service's rule."""
    rows = answers().select_related("model_version", "user")
    if user is None:
        rows = rows.filter(user=None, conversation__in=conversations_of(None, guest_ids))
    found = rows.filter(pk=pk).first()
    if found is None:
        raise Missing(_("There is no answer %(pk)s.") % {"pk": repr(pk)}, field="answer")
    return found


@transaction.atomic  # no conversation is left behind where no version can answer
def say(
    *, user: User | None, message: str = "", conversation: Conversation | None = None, version: str | None = None, after: str | None = None,
    replaces: str | None = None, max_tokens: int = MAX_TOKENS, temperature: float | None = None, image: str | None = None,
) -> Pending:  # fmt: skip
    """One more turn: `message`, about a picture where one is given, after the answer `after` (the newest where none is given), or the answer `replaces` made again."""
    if replaces:
        messages = list(_answer_of(conversation, replaces, "replaces").messages)
        temperature = AGAIN_TEMPERATURE if temperature is None else temperature
    else:
        asked = {"role": "user", "content": message, **({"image": accepted(image)} if image else {})}
        Question([asked], max_tokens=max_tokens, temperature=temperature or 0.0)  # refuse before anything is written
        messages = [*_history(conversation, after), asked]
    question = Question(within_limits(messages), max_tokens=max_tokens, temperature=temperature or 0.0)
    if conversation is None:
        conversation = services.start_conversation(user=user, first_question=message)
    else:
        conversation.save(update_fields=["updated_at"])
    return services.ask(question=question, user=user, channel="chat", version=version, conversation=conversation, trim=True)


def _answer_of(conversation: Conversation | None, pk: str, field: str) -> Answer:
    found = answers().filter(conversation=conversation, pk=pk).first() if conversation else None
    if found is None:
        raise Missing(_("There is no such answer in this conversation."), field=field)
    return found


def _history(conversation: Conversation | None, after: str | None) -> list[dict]:
    if conversation is None:
        if after:
            raise Problem(_("Name the conversation that the answer is in."), field="conversation")
        return []
    newest = _answer_of(conversation, after, "after") if after else _newest_of(conversation)
    if newest is None:
        return []
    if not newest.text:  # stopped before its first word
        return newest.messages[:-1]
    return [*newest.messages, {"role": "assistant", "content": newest.text}]


def _newest_of(conversation: Conversation) -> Answer | None:
    return answers().filter(conversation=conversation).exclude(status=Answer.Status.ERROR).order_by("-id").first()


@transaction.atomic
def forget(*, conversation: Conversation) -> None:
    """Take the conversation from its list. The answers stay, for their ratings and figures, without it."""
    conversation.delete()
