class Driver:
    def get_current_target(self) -> object: ...

class DriverConfig:
    active: Driver

driver: DriverConfig
