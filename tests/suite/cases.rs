//! The archives of operator cases: `fixtures/node/cases.bin.gz`, the standard's own, and
//! `fixtures/contrib/cases.bin.gz`, onnxruntime's answers. Their format is described in
//! `fixtures/node/README.md`.

use std::io::Read;

use bytes::Bytes;

/// One operator case: a model, and what it must compute.
pub struct Case {
    /// Name, such as `test_abs`.
    pub name: String,
    /// Allowed difference in relation to the expected number.
    pub relative: f64,
    /// Allowed difference beside that.
    pub absolute: f64,
    /// The model (`ModelProto`).
    pub model: Bytes,
    /// What goes in and what must come out.
    pub sets: Vec<DataSet>,
}

/// Inputs and expected outputs of one run, in the order of the graph's.
pub struct DataSet {
    /// What goes in.
    pub inputs: Vec<Sample>,
    /// What must come out.
    pub outputs: Vec<Sample>,
}

/// A value of a case.
#[derive(Clone)]
pub enum Sample {
    /// A `TensorProto`.
    Tensor(Bytes),
    /// A `SequenceProto`.
    Sequence(Bytes),
    /// An `OptionalProto`.
    Optional(Bytes),
}

/// The standard's cases, sorted by name.
pub fn load() -> Vec<Case> {
    load_from("fixtures/node/cases.bin.gz")
}

/// The cases of an archive, sorted by name.
pub fn load_from(archive: &str) -> Vec<Case> {
    let path = crate::program::root().join(archive);
    let file = std::fs::File::open(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let mut bytes = Vec::new();
    flate2::read::GzDecoder::new(file).read_to_end(&mut bytes).expect("the archive is whole");
    let mut reader = Reader { bytes: bytes.into(), at: 0 };
    assert_eq!(reader.take(8).as_ref(), b"OPTXCASE");
    assert_eq!(reader.u32(), 1, "version of the archive");
    let blobs: Vec<Bytes> = (0..reader.u32())
        .map(|_| {
            let length = reader.u32();
            reader.take(length as usize)
        })
        .collect();
    let cases = (0..reader.u32())
        .map(|_| Case {
            name: reader.text(),
            relative: reader.f64(),
            absolute: reader.f64(),
            model: blobs[reader.u32() as usize].clone(),
            sets: (0..reader.u32())
                .map(|_| DataSet { inputs: reader.samples(&blobs), outputs: reader.samples(&blobs) })
                .collect(),
        })
        .collect();
    assert_eq!(reader.at, reader.bytes.len(), "nothing follows the last case");
    cases
}

struct Reader {
    bytes: Bytes,
    at: usize,
}

impl Reader {
    fn take(&mut self, length: usize) -> Bytes {
        let taken = self.bytes.slice(self.at..self.at + length);
        self.at += length;
        taken
    }

    fn array<const N: usize>(&mut self) -> [u8; N] {
        self.take(N).as_ref().try_into().expect("as many bytes as asked for")
    }

    fn u32(&mut self) -> u32 {
        u32::from_le_bytes(self.array())
    }

    fn f64(&mut self) -> f64 {
        f64::from_le_bytes(self.array())
    }

    fn text(&mut self) -> String {
        let length = u16::from_le_bytes(self.array());
        String::from_utf8(self.take(length as usize).to_vec()).expect("names are UTF-8")
    }

    fn samples(&mut self, blobs: &[Bytes]) -> Vec<Sample> {
        (0..self.u32())
            .map(|_| {
                let _name = self.text();
                let [kind] = self.array();
                let blob = blobs[self.u32() as usize].clone();
                match kind {
                    0 => Sample::Tensor(blob),
                    1 => Sample::Sequence(blob),
                    2 => Sample::Optional(blob),
                    other => panic!("kind {other} of a sample"),
                }
            })
            .collect()
    }
}
