"""How a model learns, beside what every run says: fields of `workers.training.spec` that most runs leave at their defaults."""

from typing import Any

from rest_framework import serializers

from workers.training.spec import TrainSpec


class RecipeInput(serializers.Serializer):
    """What is left out keeps its default; the spec itself knows what each may be."""

    optimizer = serializers.ChoiceField(["muon", "adamw"], required=False)
    lr = serializers.FloatField(required=False, help_text="AdamW's learning rate; with Muon of embeddings, routers and norms only")
    matrix_lr = serializers.FloatField(required=False, help_text="Muon's, of attention and experts")
    preference_lr = serializers.FloatField(required=False, help_text="of both rates, while it learns from preferences")
    schedule = serializers.ChoiceField(["linear", "cosine", "wsd", "constant"], required=False, help_text="after the warm-up")
    warmup = serializers.FloatField(required=False, help_text="share of the run over which the learning rate rises")
    weight_decay = serializers.FloatField(required=False)
    clip_norm = serializers.FloatField(required=False, help_text="of all gradients together")
    ema_decay = serializers.FloatField(required=False, help_text="above 0: a moving average of the weights becomes the version")
    aux_loss = serializers.FloatField(required=False, help_text="weight of the balance loss")
    z_loss = serializers.FloatField(required=False, help_text="weight of the routers' z-loss")
    bias_rate = serializers.FloatField(required=False, help_text="step of the sigmoid router's selection bias")
    beta = serializers.FloatField(required=False, help_text="how dearly DPO and KTO pay for leaving the parent")
    evaluate_every_seconds = serializers.FloatField(required=False, help_text="between two looks at the held-out rows")


NAMES = tuple(RecipeInput().fields)


def merged(spec: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    """`spec` with fields as they are `given`: what is at its default is not said, also where the run that was cloned said otherwise."""
    changed = {name: value for name, value in given.items() if value != TrainSpec.model_fields[name].default}
    return {name: value for name, value in spec.items() if name not in given} | changed


def recipe_of(options: dict[str, Any]) -> dict[str, Any]:
    """What a job's recipe changes."""
    return {name: value for name, value in options.get("spec", {}).items() if name in NAMES}
