//! `optix explain`: errors that people search for, at more length.

use anyhow::bail;

use crate::screen;

/// Code, title and explanation.
const CODES: &[(&str, &str, &str)] = &[
    (
        "OX-M001",
        "external data outside the model's directory",
        "An ONNX model may keep tensors in files beside it. The names of these files come from the model, which \
         may be hostile, so they must be plain relative paths, and the file they lead to, all links resolved, must \
         lie in the model's directory. Put the data file beside the model and correct `location`.",
    ),
    (
        "OX-M002",
        "the model is quantized already",
        "Quantizing a quantized model would round twice. Start from the float model it was made from.",
    ),
    (
        "OX-M003",
        "operators that the engine cannot run",
        "Calibration, evaluation and checks run the model. All nodes that the chosen engine has no kernel for are \
         named at once; docs/operators.md lists what is supported. Passes that need no data still work.",
    ),
    (
        "OX-D001",
        "8-bit data for a float input",
        "Images are stored as 0 to 255 and models want them scaled and normalized: nobody but you knows how. \
         Write a data.toml with the steps (docs/data.md shows some) and give its path instead.",
    ),
    (
        "OX-L001",
        "the lock and the files do not belong together",
        "A lock makes one file from one model, byte for byte. The model must be the very file the run started from, \
         and the lock the very file the run wrote: a changed recipe or decision would make another output, which is \
         not written. Another version of optix may compute something else; the message says which version to use. \
         docs/lock.md tells what a lock holds.",
    ),
    (
        "OX-R001",
        "a requirement was missed",
        "Exit code 1: everything worked, but the result does not meet a threshold of `[require]`. Statistical \
         thresholds compare the unfavourable end of the 95% interval: with few samples the interval is wide, and \
         the report says how many samples would decide.",
    ),
];

/// Explains one code, or lists all.
pub fn explain(code: Option<&str>) -> anyhow::Result<()> {
    let Some(code) = code else {
        let lines: String = CODES.iter().map(|(code, title, _)| format!("{code}  {title}\n")).collect();
        return screen::result(&lines);
    };
    match CODES.iter().find(|(known, ..)| known.eq_ignore_ascii_case(code)) {
        Some((code, title, text)) => screen::result(&format!("{code}: {title}\n\n{text}\n")),
        None => {
            let hint = optix_pipeline::did_you_mean(code, CODES.iter().map(|(known, ..)| *known));
            bail!("there is no error code `{code}`{hint} (`optix explain` lists them)")
        }
    }
}
