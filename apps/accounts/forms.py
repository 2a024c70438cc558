from django import forms
from django.contrib.auth import password_validation
from django.contrib.auth.forms import AuthenticationForm
from django.utils.translation import gettext_lazy as _

from apps.accounts.models import User


class SignInForm(AuthenticationForm):
    error_messages = {
        "invalid_login": _("This name and password do not belong together. Check both; capital letters count."),
        "inactive": _("This account was switched off. Ask an administrator."),
    }


class TokenForm(forms.Form):
    name = forms.CharField(
        label=_("Name"), max_length=80, strip=True, help_text=_("The service that will use it, so that you know later what to revoke."),
        widget=forms.TextInput(attrs={"placeholder": _("nightly import"), "autocomplete": "off"}),
    )  # fmt: skip
    requests_per_minute = forms.IntegerField(label=_("Requests a minute"), required=False, min_value=1, max_value=10_000_000)
    tokens_per_minute = forms.IntegerField(label=_("Tokens a minute"), required=False, min_value=1, max_value=1_000_000_000)

    @property
    def limits(self) -> list[forms.BoundField]:
        return [self["requests_per_minute"], self["tokens_per_minute"]]


class UserForm(forms.Form):
    username = forms.CharField(label=_("Name"), max_length=150, widget=forms.TextInput(attrs={"autocomplete": "off"}))
    role = forms.ChoiceField(label=_("Role"), choices=User.Role.choices, initial=User.Role.VIEWER)
    password = forms.CharField(
        label=_("First password"), max_length=128, strip=False, widget=forms.PasswordInput(attrs={"autocomplete": "new-password"}),
        help_text=_("At least eight characters. Tell it to the person; it can be changed later."),
    )  # fmt: skip

    def clean_password(self) -> str:
        password_validation.validate_password(self.cleaned_data["password"], User(username=self.cleaned_data.get("username", "")))
        return self.cleaned_data["password"]
