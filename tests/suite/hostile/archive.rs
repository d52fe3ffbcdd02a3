//! Writing data files by hand: npy, npz, idx.

/// An npy array: this header, these elements.
pub fn npy(header: &str, elements: &[u8]) -> Vec<u8> {
    let mut bytes = b"\x93NUMPY\x01\0".to_vec();
    bytes.extend_from_slice(&(header.len() as u16).to_le_bytes());
    bytes.extend_from_slice(header.as_bytes());
    bytes.extend_from_slice(elements);
    bytes
}

/// An npy array of these type and shape.
pub fn array(descr: &str, shape: &str, elements: &[u8]) -> Vec<u8> {
    npy(&format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}\n"), elements)
}

/// An idx file: element type, sizes, elements.
pub fn idx(code: u8, sizes: &[u32], elements: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0, 0, code, sizes.len() as u8];
    sizes.iter().for_each(|size| bytes.extend_from_slice(&size.to_be_bytes()));
    bytes.extend_from_slice(elements);
    bytes
}

/// A member of an archive, and what it says of itself.
pub struct Member<'a> {
    pub name: &'a str,
    /// As it lies in the archive.
    pub packed: Vec<u8>,
    pub method: u16,
    pub flags: u16,
    pub size: u32,
    pub crc: u32,
}

impl Member<'_> {
    /// Stored as it is.
    pub fn stored<'a>(name: &'a str, content: &[u8]) -> Member<'a> {
        let size = content.len() as u32;
        Member { name, packed: content.to_vec(), method: 0, flags: 0, size, crc: crc(content) }
    }

    /// Deflated.
    pub fn deflated<'a>(name: &'a str, content: &[u8]) -> Member<'a> {
        Member { packed: deflate(content), method: 8, ..Member::stored(name, content) }
    }
}

/// The checksum of zip.
pub fn crc(content: &[u8]) -> u32 {
    let mut crc = flate2::Crc::new();
    crc.update(content);
    crc.sum()
}

/// Compressed without a header.
pub fn deflate(content: &[u8]) -> Vec<u8> {
    use std::io::Write;
    let mut encoder = flate2::write::DeflateEncoder::new(Vec::new(), flate2::Compression::best());
    encoder.write_all(content).expect("memory");
    encoder.finish().expect("memory")
}

/// Compressed as gzip.
pub fn gzip(content: &[u8]) -> Vec<u8> {
    use std::io::Write;
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    encoder.write_all(content).expect("memory");
    encoder.finish().expect("memory")
}

/// A zip archive.
pub fn zip(members: &[Member<'_>]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut directory = Vec::new();
    for member in members {
        let offset = bytes.len() as u32;
        let mut common = Vec::new();
        for field in [20, member.flags, member.method, 0, 0] {
            common.extend_from_slice(&u16::to_le_bytes(field));
        }
        for field in [member.crc, member.packed.len() as u32, member.size] {
            common.extend_from_slice(&field.to_le_bytes());
        }
        common.extend_from_slice(&(member.name.len() as u16).to_le_bytes());
        common.extend_from_slice(&[0; 2]);
        bytes.extend_from_slice(b"PK\x03\x04");
        bytes.extend_from_slice(&common);
        bytes.extend_from_slice(member.name.as_bytes());
        bytes.extend_from_slice(&member.packed);
        directory.extend_from_slice(b"PK\x01\x02\x14\0");
        directory.extend_from_slice(&common);
        directory.extend_from_slice(&[0; 10]);
        directory.extend_from_slice(&offset.to_le_bytes());
        directory.extend_from_slice(member.name.as_bytes());
    }
    let (start, size, count) = (bytes.len() as u32, directory.len() as u32, members.len() as u16);
    bytes.extend_from_slice(&directory);
    bytes.extend_from_slice(b"PK\x05\x06\0\0\0\0");
    for _ in 0..2 {
        bytes.extend_from_slice(&count.to_le_bytes());
    }
    bytes.extend_from_slice(&size.to_le_bytes());
    bytes.extend_from_slice(&start.to_le_bytes());
    bytes.extend_from_slice(&[0; 2]);
    bytes
}

/// An archive of stored members.
pub fn npz(members: &[(&str, Vec<u8>)]) -> Vec<u8> {
    let members: Vec<Member<'_>> =
        members.iter().map(|(name, content)| Member::stored(name, content)).collect();
    zip(&members)
}
