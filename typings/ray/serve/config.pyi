from collections.abc import Mapping

class DeploymentActorConfig:
    def __init__(self, *, name: str, actor_class: object, actor_options: Mapping[str, object]) -> None: ...
