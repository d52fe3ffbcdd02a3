"""Every step of preprocessing against the library that people know it from:

    python check_preprocessing.py --optix target/release/optix [--tokenizers DIR ...] [--only NAME]

`optix infer` runs a model that answers with its input, so what comes out is what any model would be fed. Beside each
figure, the largest difference, stands the one that is allowed; 0 means bit for bit. Needs requirements-preprocessing.txt.
`--tokenizers` names folders with a tokenizer.json of a real model each. Exits with 1 when a figure is above its limit.
"""

import argparse
import pathlib
import subprocess
import sys
import tempfile
import wave

import cv2
import librosa
import numpy as np
import onnx
from onnx import TensorProto, helper
from PIL import Image, ImageOps
from tokenizers import Tokenizer
from transformers import WhisperFeatureExtractor

HERE = pathlib.Path(__file__).resolve().parent
MEDIA = HERE.parents[1] / "fixtures" / "media"
TYPES = {"uint8": TensorProto.UINT8, "uint16": TensorProto.UINT16, "float32": TensorProto.FLOAT, "int64": TensorProto.INT64}
FILTERS = {"nearest": Image.NEAREST, "box": Image.BOX, "bilinear": Image.BILINEAR, "hamming": Image.HAMMING,
           "bicubic": Image.BICUBIC, "lanczos": Image.LANCZOS}  # fmt: skip


class Bench:
    def __init__(self, optix, work, only):
        self.optix, self.work, self.only, self.number, self.failed = optix, work, only, 0, 0

    def model(self, dtype, rank, names=("x",)):
        path = self.work / f"identity-{dtype}-{rank}-{'-'.join(names)}.onnx"
        if not path.exists():
            shape = ["N", *(f"d{axis}" for axis in range(rank))]
            tensors = [[helper.make_tensor_value_info(end + name, TYPES[dtype], shape) for name in names] for end in ("", "out_")]
            nodes = [helper.make_node("Identity", [name], ["out_" + name]) for name in names]
            graph = helper.make_graph(nodes, "identity", *tensors)
            opset = [helper.make_opsetid("", 15)]
            onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=8), path)
        return path

    def fed(self, source, steps, dtype, rank, names=("x",), extra=""):
        """What the inputs of a model get: input name -> array, batch axis included."""
        self.number += 1
        toml, out = self.work / f"{self.number}.toml", self.work / f"{self.number}.npz"
        toml.write_text(f'[source]\npath = "{source}"\n{extra}[input]\nsteps = [ {steps} ]\n')
        line = [self.optix, "infer", self.model(dtype, rank, names), "--data", toml, "-o", out]
        done = subprocess.run(list(map(str, line)), capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"{steps}\n{done.stderr}")
        with np.load(out) as arrays:
            return {name: arrays["out_" + name] for name in names}

    def compare(self, name, peer, pairs, limit):
        """`pairs` of (ours, reference)."""
        worst, shapes, differing, elements = 0.0, 0, 0, 0
        for ours, reference in pairs:
            if ours.shape != reference.shape:
                print(f"  shapes {ours.shape} and {reference.shape}")
                shapes += 1
            elif ours.size:
                difference = np.abs(ours.astype(np.float64) - reference.astype(np.float64))
                worst = max(worst, float(difference.max()))
                differing, elements = differing + int((difference > limit).sum()), elements + ours.size
        good = shapes == 0 and worst <= limit
        self.failed += not good
        print(f"{name:44} {peer:34} {worst:10.3g} {limit:10.3g} {'' if good else f'FAILED in {differing} of {elements}'}", flush=True)

    def wanted(self, name):
        return not self.only or self.only in name


def picture(height, width, channels, seed):
    random = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width]
    smooth = 127 + 90 * np.sin(x / (3 + seed % 5)) * np.cos(y / 6.0)
    image = smooth[..., None] + random.integers(-40, 41, (height, width, channels))
    image = np.clip(image, 0, 255).astype(np.uint8)
    return image if channels > 1 else image[..., 0]


def images(bench):
    files = []
    for seed, (height, width, channels) in enumerate([(37, 53, 3), (128, 96, 3), (300, 201, 3), (64, 64, 1), (5, 7, 3), (480, 640, 3)]):
        path = bench.work / f"image-{seed}.png"
        Image.fromarray(picture(height, width, channels, seed)).save(path)
        files.append((path, Image.open(path)))

    def each(steps, dtype, reference):
        for path, image in files:
            image.load()
            rank = 2 if image.mode == "L" and "rgb" not in steps else 3
            yield bench.fed(path, steps, dtype, rank)["x"][0], np.asarray(reference(image))

    for mode, resample in FILTERS.items():
        if bench.wanted(f"resize {mode}"):
            for size in [(24, 24), (224, 160), (61, 500)]:
                steps = f'{{ resize = {{ size = [{size[0]}, {size[1]}], mode = "{mode}" }} }}'
                bench.compare(f"resize {mode} to {size[0]}x{size[1]}, uint8", "Pillow resize", each(steps, "uint8", lambda i: i.resize(size[::-1], resample)), 0)

    def floats(image, size, resample):
        planes = [Image.fromarray(np.asarray(band, np.float32)) for band in image.split()]
        planes = [np.asarray(plane.resize(size[::-1], resample)) for plane in planes]
        return planes[0] if len(planes) == 1 else np.stack(planes, -1)

    for mode in ("bilinear", "bicubic", "lanczos"):
        if bench.wanted(f"resize {mode}"):
            steps = f'{{ to-float = {{}} }}, {{ resize = {{ size = [50, 71], mode = "{mode}" }} }}'
            bench.compare(f"resize {mode} to 50x71, float", "Pillow resize of mode F", each(steps, "float32", lambda i: floats(i, (50, 71), FILTERS[mode])), 1e-4)

    def plain(interpolation):
        def reference(image):
            return cv2.resize(np.asarray(image, np.float32), (71, 50), interpolation=interpolation)

        return reference

    for mode, interpolation in (("bilinear", cv2.INTER_LINEAR), ("bicubic", cv2.INTER_CUBIC)):
        if bench.wanted(f"resize {mode}"):
            steps = f'{{ to-float = {{}} }}, {{ resize = {{ size = [50, 71], mode = "{mode}", antialias = false }} }}'
            bench.compare(f"resize {mode} without antialias, float", "OpenCV resize", each(steps, "float32", plain(interpolation)), 2e-3)

    def shorter(image, size):
        """torchvision.transforms.functional.resize with an int: the other edge is cut to a whole number."""
        width, height = image.size
        short, long = min(width, height), max(width, height)
        long = int(size * long / short)
        return image.resize((size, long) if width <= height else (long, size), Image.BILINEAR)

    def center(image, size):
        """torchvision.transforms.functional.center_crop."""
        array = np.asarray(image)
        height, width = array.shape[:2]
        rims = [(max(size - height, 0) // 2, max(size - height + 1, 0) // 2), (max(size - width, 0) // 2, max(size - width + 1, 0) // 2)]
        array = np.pad(array, rims + [(0, 0)] * (array.ndim - 2))
        top, left = (int(round((edge - size) / 2.0)) for edge in array.shape[:2])
        return array[top : top + size, left : left + size]

    if bench.wanted("resize shorter"):
        bench.compare("resize of the shorter edge", "torchvision's rule, Pillow resize", each("{ resize = { size = 40 } }", "uint8", lambda i: shorter(i, 40)), 0)
    if bench.wanted("resize keep"):
        steps = "{ resize = { size = [40, 90], keep-aspect = true } }"
        bench.compare("resize with keep-aspect", "Pillow ImageOps.contain", each(steps, "uint8", lambda i: ImageOps.contain(i, (90, 40), Image.BILINEAR)), 0)
    if bench.wanted("center-crop"):
        bench.compare("center-crop", "torchvision's rule", each("{ center-crop = 50 }", "uint8", lambda i: center(i, 50)), 0)
    if bench.wanted("crop"):
        steps = "{ crop = { top = 1, left = 2, height = 3, width = 4 } }"
        bench.compare("crop", "Pillow crop", each(steps, "uint8", lambda i: i.crop((2, 1, 6, 4))), 0)
    if bench.wanted("pad"):
        steps = "{ resize = { size = [64, 64], keep-aspect = true } }, { pad = { size = 64, value = 114 } }"

        def letterbox(image):
            inner = ImageOps.contain(image, (64, 64), Image.BILINEAR)
            color = 114 if image.mode == "L" else (114,) * 3
            result = Image.new(image.mode, (64, 64), color)
            result.paste(inner, ((64 - inner.width) // 2, (64 - inner.height) // 2))
            return result

        bench.compare("pad to a letter box", "Pillow paste", each(steps, "uint8", letterbox), 0)
    if bench.wanted("channel"):
        gray = ((bench.fed(path, '{ channel = "gray" }', "uint8", 2)["x"][0], np.asarray(image.convert("L"))) for path, image in files)
        bench.compare("channel gray", 'Pillow convert("L")', gray, 0)
        bench.compare("channel rgb", 'Pillow convert("RGB")', each('{ channel = "rgb" }', "uint8", lambda i: i.convert("RGB")), 0)
        bench.compare("channel bgr", "OpenCV imread", ((bench.fed(path, '{ channel = "bgr" }', "uint8", 3)["x"][0], cv2.imread(str(path))) for path, _ in files), 0)
    if bench.wanted("preset"):
        mean, std = np.float32([0.485, 0.456, 0.406]), np.float32([0.229, 0.224, 0.225])

        def imagenet(image):
            array = center(shorter(image.convert("RGB"), 256), 224)
            return ((array.astype(np.float32) / 255 - mean) / std).transpose(2, 0, 1)

        pairs = ((bench.fed(path, '{ preset = "imagenet-torch" }', "float32", 3)["x"][0], imagenet(image)) for path, image in files)
        bench.compare("preset imagenet-torch", "torchvision's steps by hand", pairs, 1e-5)
    if bench.wanted("decode"):
        for name in ("rgb.png", "gray.png", "alpha.png", "small.bmp", "small.webp"):
            path = MEDIA / "pictures" / name
            image = Image.open(path)
            reference = np.asarray(image)
            bench.compare(f"decode {name}", "Pillow open", [(bench.fed(path, "", "uint8", reference.ndim)["x"][0], reference)], 0)
        for name in ("palette.png", "small.gif"):
            path = MEDIA / "pictures" / name
            reference = np.asarray(Image.open(path).convert("RGB"))
            bench.compare(f"decode {name} and channel rgb", 'Pillow convert("RGB")', [(bench.fed(path, '{ channel = "rgb" }', "uint8", 3)["x"][0], reference)], 0)
        path = MEDIA / "pictures" / "deep.png"
        bench.compare("decode deep.png, 16 bits", "Pillow open", [(bench.fed(path, "", "uint16", 2)["x"][0], np.asarray(Image.open(path)))], 0)
        for subsampling, limit in ((0, 3), (2, 6)):
            path = bench.work / f"{subsampling}.jpg"
            files[5][1].save(path, quality=90, subsampling=subsampling)
            ours, reference = bench.fed(path, "", "uint8", 3)["x"][0], np.asarray(Image.open(path))
            bench.compare(f"decode jpeg, subsampling {subsampling}", "Pillow open (libjpeg-turbo)", [(ours, reference)], limit)
            share = np.mean(ours != reference)
            print(f"  {100 * share:.1f}% of the bytes differ, mean |difference| {np.mean(np.abs(ours.astype(int) - reference.astype(int))):.4f}")
    if bench.wanted("exif"):
        for orientation in range(1, 9):
            path = bench.work / f"exif-{orientation}.png"
            exif = Image.Exif()
            exif[0x0112] = orientation
            Image.fromarray(picture(20, 31, 3, 3)).save(path, exif=exif)
            reference = np.asarray(ImageOps.exif_transpose(Image.open(path)))
            bench.compare(f"exif-orientation {orientation}", "Pillow ImageOps.exif_transpose", [(bench.fed(path, "{ exif-orientation = {} }", "uint8", 3)["x"][0], reference)], 0)


def save_wav(path, rate, channels, seconds, seed):
    random = np.random.default_rng(seed)
    time = np.arange(int(rate * seconds)) / rate
    sound = 0.4 * np.sin(2 * np.pi * (200 + 900 * time) * time)[:, None] + 0.1 * random.standard_normal((len(time), channels))
    values = np.clip(np.round(sound * 32767), -32768, 32767).astype("<i2")
    with wave.open(str(path), "wb") as file:
        file.setparams((channels, 2, rate, 0, "NONE", "NONE"))
        file.writeframes(values.tobytes())


def sounds(bench):
    mono, stereo = bench.work / "mono.wav", bench.work / "stereo.wav"
    save_wav(mono, 16000, 1, 1.3, 1)
    save_wav(stereo, 44100, 2, 0.7, 2)
    sound = {path: librosa.load(path, sr=None, mono=True)[0] for path in (mono, stereo)}
    to_mono = "{ mono = {} }"
    if bench.wanted("mono"):
        bench.compare("wav and mono", "librosa.load", [(bench.fed(path, to_mono, "float32", 1)["x"][0], reference) for path, reference in sound.items()], 1e-7)
    if bench.wanted("resample"):
        pairs = []
        for path, rate, target in [(mono, 16000, 8000), (mono, 16000, 22050), (stereo, 44100, 16000), (stereo, 44100, 48000)]:
            ours = bench.fed(path, f"{to_mono}, {{ resample = {{ rate = {target} }} }}", "float32", 1)["x"][0]
            pairs.append((ours, librosa.resample(sound[path], orig_sr=rate, target_sr=target, res_type="polyphase")))
            reference = librosa.resample(sound[path], orig_sr=rate, target_sr=target, res_type="soxr_hq")
            error = ours - reference[: len(ours)]
            print(f"  {rate} to {target}: {10 * np.log10(np.sum(reference**2) / np.sum(error**2)):.1f} dB from librosa's default, soxr_hq")
        bench.compare("resample", 'librosa.resample "polyphase" (scipy)', pairs, 1e-6)
    if bench.wanted("frame"):
        reference = librosa.util.frame(sound[mono], frame_length=400, hop_length=160, axis=0)
        bench.compare("frame", "librosa.util.frame", [(bench.fed(mono, "{ frame = { length = 400, hop = 160 } }", "float32", 2)["x"][0], reference)], 0)
    if bench.wanted("pad-or-trim"):
        pairs = [(bench.fed(mono, f"{{ pad-or-trim = {{ length = {length} }} }}", "float32", 1)["x"][0], librosa.util.fix_length(sound[mono], size=length)) for length in (1000, 30000)]
        bench.compare("pad-or-trim", "librosa.util.fix_length", pairs, 0)

    def relative(ours, reference):
        return ours / np.abs(reference).max(), reference / np.abs(reference).max()

    for name, steps, options in [
        ("mel, defaults", "", {}),
        ("mel, htk, no norm, window", ', scale = "htk", norm = "none", window = 300, n-mels = 40, f-min = 20.0, f-max = 7600.0',
         dict(htk=True, norm=None, win_length=300, n_mels=40, fmin=20.0, fmax=7600.0)),
        ("mel, reflected, magnitude", ', pad = "reflect", power = 1.0, n-mels = 80', dict(pad_mode="reflect", power=1.0, n_mels=80)),
        ("mel, not centered", ", center = false, n-mels = 64", dict(center=False, n_mels=64)),
    ]:  # fmt: skip
        if bench.wanted(name):
            pairs = []
            for sizes in ({"n_fft": 400, "hop_length": 160}, {"n_fft": 1024, "hop_length": 256}):
                ours = bench.fed(mono, f'{{ mel = {{ n-fft = {sizes["n_fft"]}, hop = {sizes["hop_length"]}{steps} }} }}', "float32", 2)["x"][0]
                pairs.append(relative(ours, librosa.feature.melspectrogram(y=sound[mono], sr=16000, **sizes, **options)))
            bench.compare(f"{name}, over the greatest", "librosa melspectrogram", pairs, 1e-6)
    if bench.wanted("mel in decibels"):
        ours = bench.fed(mono, '{ mel = { log = "db" } }', "float32", 2)["x"][0]
        power = librosa.feature.melspectrogram(y=sound[mono], sr=16000)
        bench.compare("mel in decibels", "librosa.power_to_db", [(ours, librosa.power_to_db(power))], 1e-3)
        ours = bench.fed(mono, '{ mel = { log = "db" } }, { mfcc = { count = 20 } }', "float32", 2)["x"][0]
        bench.compare("mfcc", "librosa.feature.mfcc", [(ours, librosa.feature.mfcc(y=sound[mono], sr=16000))], 1e-2)
    if bench.wanted("whisper"):
        extractor = WhisperFeatureExtractor()
        reference = extractor(sound[mono], sampling_rate=16000, return_tensors="np").input_features[0]
        bench.compare("preset whisper", "transformers WhisperFeatureExtractor", [(bench.fed(mono, '{ preset = "whisper" }', "float32", 2)["x"][0], reference)], 1e-3)


TEXTS = ["the quick brown fox jumps over the lazy dog", "Ünïcode, naïve café; 東京 and 🙂 emoji", "unbelievable!!! a b  c\td", "1234567 3.14 x=2", "a", "good " * 200,
         "def f(x):\n    return x**2".replace("\n", " ")]  # fmt: skip


def texts(bench, folders):
    lines = bench.work / "texts.txt"
    lines.write_text("".join(text + "\n" for text in TEXTS))
    names = ("input_ids", "attention_mask", "token_type_ids")
    for file in [MEDIA / "tokenizer.json", *(folder / "tokenizer.json" for folder in folders)]:
        label = file.parent.name
        if not bench.wanted(f"tokenize {label}"):
            continue
        tokenizer = Tokenizer.from_file(str(file))
        tokenizer.no_padding()
        tokenizer.enable_truncation(64)
        pad = next((tokenizer.token_to_id(name) for name in ("[PAD]", "<pad>", "<|endoftext|>") if tokenizer.token_to_id(name) is not None), 0)
        tokenizer.enable_padding(pad_id=pad)
        encodings = tokenizer.encode_batch(TEXTS)
        reference = {"input_ids": [e.ids for e in encodings], "attention_mask": [e.attention_mask for e in encodings], "token_type_ids": [e.type_ids for e in encodings]}
        ours = bench.fed(lines, f'{{ tokenize = {{ file = "{file}", max-length = 64, pad-side = "right", pad-id = {pad} }} }}', "int64", 1, names)
        bench.compare(f"tokenize, {label}", "tokenizers encode_batch", [(ours[name], np.array(reference[name])) for name in names], 0)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--optix", required=True, type=lambda text: str(pathlib.Path(text).resolve()))
    parser.add_argument("--tokenizers", nargs="*", default=[], type=lambda text: pathlib.Path(text).resolve(), metavar="DIR")
    parser.add_argument("--only", help="run what has this in its name")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as work:
        bench = Bench(options.optix, pathlib.Path(work), options.only)
        print(f"{'step':44} {'peer':34} {'found':>10} {'allowed':>10}")
        images(bench)
        sounds(bench)
        texts(bench, options.tokenizers)
    print(f"{bench.failed} above their limit")
    sys.exit(bench.failed > 0)


if __name__ == "__main__":
    main()
