from django.urls import path

from apps.serving import views

urlpatterns = [
    path("chat/", views.chat, name="chat"),
    path("chat/waiting/", views.waiting, name="chat_waiting"),
    path("chat/<str:pk>/", views.chat, name="conversation"),
    path("chat/<str:pk>/forget/", views.forget, name="forget_conversation"),
    path("chat/answers/<str:pk>/rate/", views.rate_answer, name="rate_answer"),
]
