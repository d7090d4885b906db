class Tool:
    path: str

class NvidiaTools:
    cuobjdump: Tool

nvidia: NvidiaTools
