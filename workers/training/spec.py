"""What one training job is, as the JSON file that the child process reads."""

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from workers.moe.config import PRESETS, ModelConfig

Precision = Literal["fp32", "bf16", "fp16"]


class LoraSpec(BaseModel):
    """Low-rank adapters (`workers.training.lora`)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    rank: int = Field(8, ge=1, le=1024)
    alpha: float = Field(16.0, gt=0)  # what is learnt is multiplied by alpha / rank
    targets: tuple[Literal["attention", "experts"], ...] = Field(("attention", "experts"), min_length=1)
    train_router: bool = False


class StageSpec(BaseModel):
    """A part of a run that learns from one kind of the dataset's rows (`workers.training.curriculum`)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["text", "questions", "adversarial", "preference"]
    share: float = Field(gt=0)  # of the run, next to the other stages'
    rehearsal: float = Field(0.0, ge=0, lt=1)  # share of its examples that are of the kinds of the stages before it


class TrainSpec(BaseModel):
    """Paths are folders; `output_folder` appears when the job is done, `work_folder` keeps the checkpoint to resume from."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    version: Literal[1] = 1
    dataset_folder: Path
    output_folder: Path
    work_folder: Path

    preset: str | None = "nano"
    model: dict[str, Any] | None = None  # a ModelConfig, in place of a preset
    parent_folder: Path | None = None  # go on from this model, with its tokenizer and configuration
    lora: LoraSpec | None = None  # learn adapters beside the parent's matrices, in place of the matrices
    objective: Literal["sft", "dpo", "kto"] = "sft"  # likelihood of the answers, or preference against the parent as reference
    stages: tuple[StageSpec, ...] = ()  # none: the dataset's mixture from beginning to end
    router: Literal["softmax", "sigmoid"] = "softmax"

    steps: int | None = Field(None, ge=1)
    minutes: float | None = Field(None, gt=0)  # of training proper; the schedule follows the clock

    precision: Precision = "bf16"
    accum_steps: int = Field(1, ge=1, le=4096)
    zero_stage: Literal[0, 1, 2, 3] = 0
    world_size: int = Field(1, ge=1)
    expert_parallel_size: int = Field(1, ge=1)  # ranks over which each layer's experts are spread; with stages 0 and 1
    threads: int = Field(1, ge=1)  # of this machine's cores, shared by the ranks that run on it
    device: Literal["cpu", "cuda"] = "cpu"

    micro_batch: int = Field(32, ge=1)  # examples in one forward pass of one rank
    optimizer: Literal["muon", "adamw"] = "muon"
    lr: float = Field(5e-3, gt=0)  # AdamW's; with Muon of embeddings, routers and norms only
    matrix_lr: float = Field(0.02, gt=0)  # Muon's, of attention and experts
    preference_lr: float = Field(0.02, gt=0)  # of both rates, in preference training: at 0.1 it harms (docs/decisions/fine-tuning.md)
    beta: float = Field(0.1, gt=0)  # how dearly DPO and KTO pay for leaving the reference
    chosen_likelihood: float = Field(0.0, ge=0)  # weight of the chosen answer's likelihood beside DPO (RPO, Pang et al. 2024, eq. 1)
    warmup: float = Field(0.05, ge=0, lt=1)  # share of the run over which the learning rate rises
    schedule: Literal["linear", "cosine", "wsd", "constant"] = "linear"
    weight_decay: float = Field(0.0, ge=0)
    clip_norm: float = Field(1.0, gt=0)
    aux_loss: float = Field(0.01, ge=0)  # weight of the balance loss
    z_loss: float = Field(1e-4, ge=0)
    bias_rate: float = Field(1e-3, ge=0)  # step of the sigmoid router's selection bias
    domain_routing: float = Field(0.0, ge=0, le=1)  # weight of the mutual information of expert and domain; 0: experts know of no domains
    domain_weights: dict[str, float] = {}  # how often a domain's records are seen, next to 1
    conversations: float = Field(0.25, ge=0, lt=1)  # share of the questions that follow another one in the same conversation
    vocab_size: int | None = Field(None, ge=300)  # of a tokenizer that is yet to learn; else the preset's
    max_length: int = Field(256, ge=8)  # tokens of one example; longer documents are cut into pieces
    image_size: int = Field(32, ge=4, le=256)  # pixels a side in which a new model sees pictures, where the dataset has any
    patch_size: int = Field(8, ge=2, le=64)  # pixels a side of what becomes one token
    image_stem: int = Field(16, ge=0, le=256)  # channels of the convolutions before the patches; 0: none

    ema_decay: float = Field(0.0, ge=0, lt=1)  # above 0: a moving average of the weights is kept, and published in their place
    activation_checkpointing: bool = False  # compute a block's activations again in the backward pass, in place of keeping them

    # Robust standard deviations by which the loss must lie above its last steps' median, several times in a row, to be called
    # diverged; 0: only what is not finite is.
    spike_deviations: float = Field(10.0, ge=0)

    seed: int = Field(0, ge=0)
    log_every: int = Field(10, ge=1)  # steps between two step events
    log_every_seconds: float = Field(1.0, ge=0)  # and the time that lies at least between them
    sample_every_seconds: float = Field(10.0, gt=0)
    evaluate_every_seconds: float = Field(60.0, gt=0)
    checkpoint_every_seconds: float = Field(15.0, gt=0)

    @model_validator(mode="after")
    def _consistent(self) -> "TrainSpec":
        if (self.steps is None) == (self.minutes is None):
            raise ValueError("give either steps or minutes")
        if self.zero_stage and self.world_size < 2:
            raise ValueError(f"zero_stage {self.zero_stage} shards over ranks: world_size must be at least 2")
        if self.model is None and self.parent_folder is None and self.preset not in PRESETS:
            raise ValueError(f"there is no preset {self.preset!r}; there are {', '.join(PRESETS)}")
        if self.lora is not None and self.parent_folder is None:
            raise ValueError("lora adapts a parent's weights: give a parent_folder")
        if self.image_size % self.patch_size:
            raise ValueError(f"image_size ({self.image_size}) must be a multiple of patch_size ({self.patch_size})")
        if self.objective != "sft" and self.parent_folder is None and not self.stages:
            raise ValueError(f"{self.objective} learns against a parent as reference: give a parent_folder")
        if self.objective != "sft" and self.stages and not self.preference_method:
            raise ValueError(f"objective {self.objective} goes with a stage of kind preference, and the stages have none")
        if self.model is not None:
            ModelConfig.from_dict(self.model)
        if self.expert_parallel_size > 1:
            self._experts_can_be_spread()
        return self

    def _experts_can_be_spread(self) -> None:
        size = self.expert_parallel_size
        if self.zero_stage > 1:
            raise ValueError(
                f"expert_parallel_size {size} goes with zero_stage 0 and 1: stage {self.zero_stage} shards the experts over all ranks already"
            )
        if self.world_size % size:
            raise ValueError(f"world_size ({self.world_size}) must be a multiple of expert_parallel_size ({size})")
        if self.parent_folder is None:  # a parent's experts are counted when it is read
            name = "preset" if self.model is None else "model"
            experts = (PRESETS[self.preset or "nano"] if self.model is None else ModelConfig.from_dict(self.model)).n_experts
            if not experts or experts % size:
                raise ValueError(f"the {experts} experts of this {name} cannot be spread evenly over expert_parallel_size {size}")

    @property
    def preference_method(self) -> Literal["dpo", "kto"] | None:
        """How preferences are learnt from, where they are at all."""
        if self.stages and not any(stage.kind == "preference" for stage in self.stages):
            return None
        return self.objective if self.objective != "sft" else "dpo" if self.stages else None

    def model_config_for(self, vocab_size: int, *, pictures: bool = False) -> ModelConfig:
        """The shape of a model trained from nothing, for a tokenizer of `vocab_size` tokens. `pictures`: with an image front end."""
        base = ModelConfig.from_dict(self.model) if self.model is not None else PRESETS[self.preset or "nano"]
        if not pictures:
            base = base.with_(image_size=0, image_stem=0)
        elif not base.image_size:
            base = base.with_(image_size=self.image_size, patch_size=self.patch_size, image_stem=self.image_stem)
        return base.with_(vocab_size=vocab_size, router=self.router if base.is_moe else base.router)

    @property
    def most_vocabulary(self) -> int:
        if self.vocab_size:
            return self.vocab_size
        return ModelConfig.from_dict(self.model).vocab_size if self.model is not None else PRESETS[self.preset or "nano"].vocab_size
