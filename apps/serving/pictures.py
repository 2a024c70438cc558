"""Pictures in a conversation: what is accepted, and which versions see them."""

from django.utils.translation import gettext as _

from apps.accounts.problems import Problem
from apps.portal.retelling import retold
from apps.registry.models import ModelVersion
from workers.moe import VISION_FILE, BadPicture, shrunk

# A conversation is kept, sent and shown with its pictures: no model here sees more than a few pixels of them.
MAX_SIDE = 256
MAX_PICTURES = 4  # of one conversation
MAX_CHARACTERS = 6_000_000  # of one as it comes, in base64


def accepted(picture: str) -> str:
    """A picture as it came (a data URL, or plain base64 of a PNG or JPEG) as the data URL that is kept. Raises Problem."""
    try:
        return shrunk(picture, MAX_SIDE)
    except BadPicture as bad:
        raise Problem(retold(str(bad)), field="image") from bad


def require_few(messages: list[dict]) -> None:
    """Raises Problem where there are more pictures than anybody looks at, or where they are not the user's."""
    shown = [m for m in messages if m.get("image")]
    if len(shown) > MAX_PICTURES or any(m["role"] != "user" for m in shown):
        raise Problem(_("At most %(most)s pictures, in the user's messages, can be looked at.") % {"most": MAX_PICTURES}, field="image")


def sees(version: ModelVersion) -> bool:
    """Whether it has an image front end; written as ONNX it has none any more."""
    return any(file["name"] == VISION_FILE for file in version.files)


def tokens_a_picture(version: ModelVersion) -> int:
    """Of the model's window."""
    size, patch = int(version.config.get("image_size") or 0), int(version.config.get("patch_size") or 1)
    return (size // patch) ** 2


def picture_of(messages: list[dict]) -> str | None:
    """That of the last question."""
    return next((m.get("image") for m in reversed(messages) if m.get("role") == "user"), None)


def for_version(messages: list[dict], version: ModelVersion, *, forgiving: bool) -> list[dict]:
    """The messages as `version` can take them. Raises Problem for a picture that it does not see; `forgiving`: earlier ones are left out."""
    if sees(version) or not any(m.get("image") for m in messages):
        return messages
    if picture_of(messages) or not forgiving:
        raise Problem(
            _("%(name)s reads text only. Ask a version that was trained with pictures, or leave the picture out.") % {"name": version.name},
            field="image",
        )
    return [{name: value for name, value in message.items() if name != "image"} for message in messages]
