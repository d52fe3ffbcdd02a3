"""The peer's evaluation as a process of its own, as short as it can be written well:

    python peer_eval.py MODEL --data DATA [--labels LABELS] [--train TRAIN.npz] [--output NAME] --batch N --threads N

DATA is an .npz (one array per model input, `label`) or idx images (normalized batch by batch as in the fixture's
data.toml) with LABELS. Prints the accuracy: of the highest score, or of a ridge classifier fitted on the embeddings of
TRAIN. Only the named output is asked for; images are turned to floats a batch at a time; nothing but numpy and
onnxruntime is imported.
"""

import argparse
import gzip
import struct

import numpy as np
import onnxruntime as ort


def idx(path):
    with gzip.open(path) as file:
        data = file.read()
    rank = data[3]
    return np.frombuffer(data, np.uint8, offset=4 + 4 * rank).reshape(struct.unpack(f">{rank}I", data[4 : 4 + 4 * rank]))


def arrays(path, labels):
    """Input name -> array (None for the only input), labels."""
    if path.endswith(".npz"):
        with np.load(path) as data:
            return {name: data[name] for name in data.files if name != "label"}, data["label"]
    return {None: idx(path)}, idx(labels)


def normalized(images):
    return ((images.astype(np.float32) * np.float32(1 / 255) - np.float32(0.2860)) / np.float32(0.3530))[:, None]


def outputs(session, feeds, wanted, batch):
    """What the model gives, batch by batch."""
    name = session.get_inputs()[0].name
    count = len(next(iter(feeds.values())))
    for at in range(0, count, batch):
        fed = {key or name: value[at : at + batch] if key else normalized(value[at : at + batch]) for key, value in feeds.items()}
        yield session.run([wanted], fed)[0]


def unit(x):
    x = x.astype(np.float64)
    return np.hstack([x / np.linalg.norm(x, axis=1, keepdims=True), np.ones((len(x), 1))])


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("--data", required=True)
    parser.add_argument("--labels")
    parser.add_argument("--train")
    parser.add_argument("--output")
    parser.add_argument("--batch", type=int, required=True)
    parser.add_argument("--threads", type=int, required=True)
    given = parser.parse_args()
    options = ort.SessionOptions()
    options.intra_op_num_threads = given.threads
    session = ort.InferenceSession(given.model, options, providers=["CPUExecutionProvider"])
    wanted = given.output or session.get_outputs()[0].name
    if given.train:
        feeds, labels = arrays(given.train, None)
        a = unit(np.concatenate(list(outputs(session, feeds, wanted, given.batch))))
        y = np.where(labels > 0, 1.0, -1.0)
        weights = np.linalg.solve(a.T @ a + 0.1 * np.eye(a.shape[1]), a.T @ y)
        decide = lambda found: (unit(found) @ weights > 0).astype(np.int64)
    else:
        decide = lambda found: found.argmax(1)
    feeds, labels = arrays(given.data, given.labels)
    right, at = 0, 0
    for found in outputs(session, feeds, wanted, given.batch):
        right += int((decide(found) == labels[at : at + len(found)]).sum())
        at += len(found)
    print(right / at)


if __name__ == "__main__":
    main()
