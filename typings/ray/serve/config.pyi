from collections.abc import Mapping

from ray.serve.request_router import RequestRouter

class DeploymentActorConfig:
    def __init__(self, *, name: str, actor_class: object, actor_options: Mapping[str, object]) -> None: ...

class RequestRouterConfig:
    def __init__(self, *, request_router_class: type[RequestRouter]) -> None: ...
