"""The worker of LiteRT: the network in a .tflite file, from a float image that is already normalized."""

import numpy as np
from ai_edge_litert.interpreter import Interpreter

from benchmarks import worker


def main() -> None:
    """Measures setting the input, running and getting the output."""
    task = worker.read_task()
    interpreter = Interpreter(task["tflite"], num_threads=task["threads"])
    interpreter.allocate_tensors()
    (given,), (result,) = interpreter.get_input_details(), interpreter.get_output_details()
    image = np.random.default_rng(0).uniform(-1, 1, given["shape"]).astype(np.float32)

    def run():
        interpreter.set_tensor(given["index"], image)
        interpreter.invoke()
        return interpreter.get_tensor(result["index"])

    output = run()
    seconds = worker.repeat(run, warm_up=3, repetitions=task["repetitions"])
    worker.report({"inference": seconds}, packages=("ai-edge-litert",), facts={"output": list(output.shape)})


if __name__ == "__main__":
    main()
