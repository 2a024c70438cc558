"""Django's admin shows rows and changes none: every change goes through a service, which leaves an audit row."""

from django.contrib import admin
from django.contrib.auth.models import Group

from apps.accounts.models import ApiToken, AuditEntry, User

admin.site.unregister(Group)  # roles are fields of users


class ReadOnly(admin.ModelAdmin):
    list_per_page = 50
    show_full_result_count = False

    def has_add_permission(self, request, obj=None):
        return False

    def has_change_permission(self, request, obj=None):
        return False

    def has_delete_permission(self, request, obj=None):
        return False


@admin.register(User)
class UserAdmin(ReadOnly):
    list_display = ("username", "role", "is_active", "last_login")
    list_filter = ("role", "is_active")
    search_fields = ("username",)
    exclude = ("password",)


@admin.register(ApiToken)
class ApiTokenAdmin(ReadOnly):
    list_display = ("name", "prefix", "user", "last_used_at", "revoked_at")
    list_select_related = ("user",)
    exclude = ("digest",)


@admin.register(AuditEntry)
class AuditEntryAdmin(ReadOnly):
    list_display = ("created_at", "actor_name", "action", "object_kind", "object_label", "source")
    list_filter = ("action", "object_kind")
    search_fields = ("=object_id", "actor_name")
