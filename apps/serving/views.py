"""The chat page. It streams by `static/js/chat.js` over the API; without scripts the same form is answered with a whole page."""

import base64

from django.conf import settings
from django.contrib import messages
from django.contrib.auth.views import redirect_to_login
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.utils.translation import get_language
from django.utils.translation import gettext as _
from django.views.decorators.http import require_GET, require_http_methods, require_POST

from apps.accounts.problems import Problem
from apps.feedback.services import rate
from apps.registry.selectors import live_version
from apps.rest import actor_of
from apps.serving import chat as conversations
from apps.serving import selectors
from apps.serving.answer_log import answers
from apps.serving.api import GUESTS_CONVERSATIONS, SESSION_KEY
from apps.serving.pictures import MAX_CHARACTERS as MAX_PICTURE_CHARACTERS
from apps.serving.pictures import sees
from apps.serving.questions import MAX_CHARACTERS

CONVERSATIONS_SHOWN = 40


def _may_chat(request: HttpRequest) -> bool:
    return request.user.is_authenticated or settings.GUEST_CHAT


def _sent_picture(request: HttpRequest) -> str | None:
    """That of the form without scripts, as it came."""
    file = request.FILES.get("picture")
    return base64.b64encode(file.read(MAX_PICTURE_CHARACTERS)).decode() if file and file.size else None


@require_http_methods(["GET", "POST"])
def chat(request: HttpRequest, pk: str | None = None) -> HttpResponse:
    if not _may_chat(request):
        return redirect_to_login(request.get_full_path())
    user, guest_ids = actor_of(request), request.session.get(SESSION_KEY, [])
    conversation = None
    if pk:
        conversation = conversations.conversations_of(user, guest_ids).filter(pk=pk).first()
        if conversation is None:
            messages.warning(request, _("There is no such conversation of yours any more."))
            return redirect("chat")
    typed, error = "", ""
    if request.method == "POST":
        typed = request.POST.get("message", "")
        try:
            pending = conversations.say(user=user, message=typed, conversation=conversation, image=_sent_picture(request))
            if user is None and pending.conversation.pk not in guest_ids:
                request.session[SESSION_KEY] = [*guest_ids, pending.conversation.pk][-GUESTS_CONVERSATIONS:]
            pending.whole()
            return redirect("conversation", pk=pending.conversation.pk)
        except Problem as problem:
            error = problem.detail
    live = live_version()
    values = {
        "section": "chat",
        "layout": "base.html" if user else "plain.html",
        "conversation": conversation,
        "conversations": conversations.conversations_of(user, guest_ids)[:CONVERSATIONS_SHOWN],
        "turns": selectors.turns_of(conversation) if conversation else [],
        "suggestions": [] if conversation else selectors.suggestions(get_language() or "en"),
        "live": live,
        "sees": live is not None and sees(live),
        "first_version_seconds": None if live else selectors.first_version_seconds(),
        "typed": typed,
        "error": error,
        "max_characters": MAX_CHARACTERS,
        "stars": range(1, 6),
    }
    return render(request, "serving/chat.html", values, status=400 if error else 200)


@require_GET
def waiting(request: HttpRequest) -> HttpResponse:
    """Polled until a version is live; then the page is loaded anew."""
    if not _may_chat(request):
        return HttpResponse(status=403)
    live = live_version()
    response = render(request, "serving/_waiting.html", {"first_version_seconds": None if live else selectors.first_version_seconds()})
    if live:
        response["HX-Refresh"] = "true"
    return response


@require_POST
def rate_answer(request: HttpRequest, pk: str) -> HttpResponse:
    """The rating form of the page without scripts."""
    if not request.user.is_authenticated:
        return redirect_to_login("/chat/")
    answer = answers().filter(pk=pk, user=request.user).first()
    if answer is None:
        messages.error(request, _("There is no such conversation of yours any more."))
        return redirect("chat")
    try:
        given = request.POST.get("rating", "")
        rate(answer=answer, rating=int(given) if given.isdigit() else 0, user=request.user, source=request.META.get("REMOTE_ADDR", ""))
    except Problem as problem:
        messages.error(request, problem.detail)
    return redirect("conversation", pk=answer.conversation_id) if answer.conversation_id else redirect("chat")


@require_POST
def forget(request: HttpRequest, pk: str) -> HttpResponse:
    if not _may_chat(request):
        return redirect_to_login("/chat/")
    found = conversations.conversations_of(actor_of(request), request.session.get(SESSION_KEY, [])).filter(pk=pk).first()
    if found:
        conversations.forget(conversation=found)
    return redirect("chat")
