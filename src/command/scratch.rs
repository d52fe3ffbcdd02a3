//! A file for what memory is not to hold.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};

use optix_pipeline::Scratch;

/// A file without a name in the folder for temporary files: it is gone when the process is, however that ends.
pub struct ScratchFile {
    file: File,
    length: u64,
}

impl ScratchFile {
    /// An empty one.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn new() -> Result<ScratchFile, String> {
        let file = tempfile::tempfile().map_err(said)?;
        Ok(ScratchFile { file, length: 0 })
    }
}

fn said(error: std::io::Error) -> String {
    format!("samples that memory does not hold, in {} (TMPDIR): {error}", std::env::temp_dir().display())
}

impl Scratch for ScratchFile {
    fn put(&mut self, bytes: &[u8]) -> Result<u64, String> {
        let place = self.length;
        self.file.seek(SeekFrom::Start(place)).and_then(|_| self.file.write_all(bytes)).map_err(said)?;
        self.length += bytes.len() as u64;
        Ok(place)
    }

    fn get(&mut self, place: u64, bytes: &mut [u8]) -> Result<(), String> {
        self.file.seek(SeekFrom::Start(place)).and_then(|_| self.file.read_exact(bytes)).map_err(said)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_put_aside_comes_back() {
        let mut file = ScratchFile::new().expect("a file");
        let (first, second) = (file.put(b"first").expect("room"), file.put(b"second").expect("room"));
        let mut bytes = [0; 6];
        file.get(second, &mut bytes).expect("it is there");
        assert_eq!(&bytes, b"second");
        file.get(first, &mut bytes[..5]).expect("it is there");
        assert_eq!(&bytes[..5], b"first");
        assert!(file.get(8, &mut bytes).is_err());
    }
}
