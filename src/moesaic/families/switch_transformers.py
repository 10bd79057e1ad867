"""Switch Transformers: an encoder-decoder with top-1 routing and experts in modules of their own."""

from moesaic.families._spec import ModuleListFamily

SWITCH_TRANSFORMERS = ModuleListFamily(
    model_type="switch_transformers",
    experts_class="SwitchTransformersExperts",
    expert="expert_{}",
    up="wi.weight",
    down="wo.weight",
    activation="act",
    router="router.classifier.weight",
    one_hot=True,
)
