class DeploymentID:
    def __init__(self, name: str, app_name: str) -> None: ...

class DeploymentHandleSource:
    PROXY: DeploymentHandleSource
