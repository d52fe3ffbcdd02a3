//! A folder of images or sounds: one folder a class, or all in one without labels. Also one such file
//! alone.

use std::collections::BTreeSet;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::labels::{class_names, named_twice, read_names};
use super::options::SourceOptions;
use super::{Facts, Kind, Label, Opened, Sample, Settings, Source, media, names_in};
use crate::error::{DataError, shown};

/// Folders within folders.
const MAX_DEPTH: usize = 16;

/// Names that files of a kind end in; what they are shows in their contents.
const IMAGES: &[&str] = &["png", "jpg", "jpeg", "bmp", "gif", "webp", "tif", "tiff", "ppm", "pgm", "avif"];
const SOUNDS: &[&str] = &["wav", "wave", "flac", "mp3", "ogg"];

/// A file beside the class folders that gives the classes their numbers.
const CLASS_FILE: &str = "classes.txt";

/// A file in the folder that gives the files their labels.
pub(crate) const LABEL_FILE: &str = "labels.csv";

fn extensions(kind: Kind) -> &'static [&'static str] {
    if kind == Kind::Wav { SOUNDS } else { IMAGES }
}

/// Whether a name is that of a file of this kind.
pub(crate) fn is_media(name: &str, kind: Kind) -> bool {
    let extension = name.rsplit_once('.').map(|(_, extension)| extension.to_ascii_lowercase());
    // Names that begin with a dot are what file managers leave.
    extension.is_some_and(|extension| extensions(kind).contains(&extension.as_str()))
        && !name.starts_with('.')
}

/// The path of a file that stands in a table or a folder: it must stay within `root`, whose links have
/// been resolved, unless links are followed.
pub(crate) fn within(root: &Path, relative: &Path, follow_links: bool) -> Result<PathBuf, String> {
    use std::path::Component;
    let shown = shown(relative);
    if relative.components().any(|part| !matches!(part, Component::Normal(_) | Component::CurDir)) {
        return Err(format!(
            "path `{shown}` leads out of the folder: paths are relative to it and have no `..`"
        ));
    }
    let path = root.join(relative);
    if follow_links {
        return Ok(path);
    }
    match path.canonicalize() {
        Ok(real) if !real.starts_with(root) => Err(format!(
            "path `{shown}` leads out of the folder by a link: set `follow-links = true` in [source] if that is meant"
        )),
        Ok(real) => Ok(real),
        Err(error) => Err(format!("`{shown}` cannot be read ({error})")),
    }
}

#[derive(Debug)]
struct Folder {
    entries: Arc<[(PathBuf, Option<u32>)]>,
    classes: Vec<String>,
    settings: Settings,
    ignored: u64,
}

/// Lists a folder, or takes one file.
pub(crate) fn open(kind: Kind, settings: Settings) -> Result<Arc<dyn Opened>, DataError> {
    let path = settings.spec.path.clone();
    if !path.is_dir() {
        let entries = Arc::from([(path, None)]);
        return Ok(Arc::new(Folder { entries, classes: Vec::new(), settings, ignored: 0 }));
    }
    let root = path.canonicalize().map_err(|error| DataError::read(&path, error))?;
    let mut walk = Walk { kind, path: &path, root, settings: &settings, found: Vec::new(), ignored: 0 };
    let (mut files, mut folders) = (Vec::new(), Vec::new());
    for name in names_in(&path)? {
        if path.join(&name).is_dir() {
            if !name.starts_with('.') {
                folders.push(name);
            }
        } else if is_media(&name, kind) {
            files.push(name);
        } else if name != CLASS_FILE {
            walk.ignored = walk.ignored.saturating_add(1);
        }
    }
    if !files.is_empty() {
        for name in files {
            walk.add(Path::new(&name), None)?;
        }
        // Flat: what stands in folders beside it would get no label.
        let mut inner = 0u64;
        for folder in &folders {
            let names = names_in(&path.join(folder))?;
            inner = inner.saturating_add(names.iter().filter(|name| is_media(name, kind)).count() as u64);
        }
        if inner > 0 {
            let what = format!(
                "{} files stand in it and {inner} in its folders: put each file into the folder of its class, or \
                 list them in a {LABEL_FILE}",
                walk.found.len()
            );
            return Err(DataError::invalid(&path, "", what));
        }
    }
    let mut classes = Vec::new();
    if walk.found.is_empty() {
        classes = class_order(&path, &folders, &settings)?;
        for (index, class) in classes.iter().enumerate() {
            let label = u32::try_from(index).ok();
            if folders.contains(class) {
                let mut open = BTreeSet::new();
                walk.folder(Path::new(class), label, 0, &mut open)?;
            }
        }
    }
    if walk.found.is_empty() {
        let list = extensions(kind).iter().take(6).copied().collect::<Vec<_>>().join(", ");
        let what = format!("there are no files of kind {} in it ({list}, ...)", kind.name());
        return Err(DataError::invalid(&path, "", what));
    }
    let (found, ignored) = (walk.found, walk.ignored);
    Ok(Arc::new(Folder { entries: found.into(), classes, settings, ignored }))
}

/// The classes in the order of their numbers: as the user or `classes.txt` says, else sorted.
fn class_order(path: &Path, folders: &[String], settings: &Settings) -> Result<Vec<String>, DataError> {
    let beside = path.join(CLASS_FILE);
    let (names, origin) = match &settings.spec.options.classes {
        Some(classes) => (class_names(Some(classes), &settings.spec.base, &settings.limits)?, "`classes`"),
        None if beside.is_file() => (Some(read_names(&beside, &settings.limits)?), CLASS_FILE),
        None => (None, ""),
    };
    let Some(names) = names else { return Ok(folders.to_vec()) };
    if let Some(twice) = named_twice(&names) {
        return Err(DataError::invalid(path, "", format!("`{twice}` is named twice in {origin}")));
    }
    let known: BTreeSet<&String> = names.iter().collect();
    if let Some(extra) = folders.iter().find(|folder| !known.contains(folder)) {
        let hint = crate::spec::did_you_mean(extra, names.iter().map(String::as_str));
        let what = format!("folder `{extra}` is none of the {} classes of {origin}{hint}", names.len());
        return Err(DataError::invalid(path, "", what));
    }
    Ok(names)
}

struct Walk<'a> {
    kind: Kind,
    path: &'a Path,
    root: PathBuf,
    settings: &'a Settings,
    found: Vec<(PathBuf, Option<u32>)>,
    ignored: u64,
}

impl Walk<'_> {
    fn add(&mut self, relative: &Path, label: Option<u32>) -> Result<(), DataError> {
        let limit = self.settings.limits.files;
        if self.found.len() as u64 >= limit {
            return Err(DataError::limit(self.path, "its files", "files", limit));
        }
        self.found.push((relative.to_owned(), label));
        Ok(())
    }

    /// Everything below a class's folder, in the order of the names. `open` has the folders on the way
    /// here, so that links in a circle end.
    fn folder(
        &mut self,
        relative: &Path,
        label: Option<u32>,
        depth: usize,
        open: &mut BTreeSet<(u64, u64)>,
    ) -> Result<(), DataError> {
        let invalid = |what: String| DataError::invalid(self.path, "", what);
        let follow = self.settings.spec.options.follow_links;
        let directory = within(&self.root, relative, follow).map_err(invalid)?;
        let metadata = std::fs::metadata(&directory).map_err(|error| DataError::read(&directory, error))?;
        let key = (metadata.dev(), metadata.ino());
        if depth >= MAX_DEPTH || !open.insert(key) {
            let what =
                format!("folder `{}`: links lead in a circle, or folders are too deep", shown(relative));
            return Err(invalid(what));
        }
        for name in names_in(&directory)? {
            let inner = relative.join(&name);
            if is_media(&name, self.kind) {
                self.add(&inner, label)?;
            } else if directory.join(&name).is_dir() && !name.starts_with('.') {
                self.folder(&inner, label, depth.saturating_add(1), open)?;
            } else {
                self.ignored = self.ignored.saturating_add(1);
            }
        }
        open.remove(&key);
        Ok(())
    }
}

impl Opened for Folder {
    fn stream(&self) -> Result<Box<dyn Source>, DataError> {
        let path = &self.settings.spec.path;
        let root = path.canonicalize().map_err(|error| DataError::read(path, error))?;
        Ok(Box::new(Files {
            names: [String::new()],
            is_one: root.is_file(),
            root,
            entries: Arc::clone(&self.entries),
            settings: self.settings.clone(),
            at: 0,
        }))
    }

    fn classes(&self) -> &[String] {
        &self.classes
    }

    fn notes(&self) -> Vec<String> {
        if self.ignored == 0 {
            return Vec::new();
        }
        vec![format!("{} other files in it are not read", self.ignored)]
    }
}

struct Files {
    names: [String; 1],
    is_one: bool,
    root: PathBuf,
    entries: Arc<[(PathBuf, Option<u32>)]>,
    settings: Settings,
    at: usize,
}

impl Source for Files {
    fn arrays(&self) -> &[String] {
        &self.names
    }

    fn count(&self) -> u64 {
        self.entries.len() as u64
    }

    fn next(&mut self) -> Result<Sample, DataError> {
        let Some((relative, label)) = self.entries.get(self.at) else { return Ok(Sample::default()) };
        self.at = self.at.saturating_add(1);
        let SourceOptions { follow_links, .. } = self.settings.spec.options;
        let base = &self.settings.spec.path;
        let (tensor, facts) = if self.is_one {
            media::read(base, &self.settings.limits)?
        } else {
            within(&self.root, relative, follow_links).map_err(|what| DataError::invalid(base, "", what))?;
            media::read(&base.join(relative), &self.settings.limits)?
        };
        let label = label.map(|class| Label::Class(i64::from(class)));
        let facts = Facts { place: Some(relative.clone()).filter(|_| !self.is_one), ..facts };
        Ok(Sample { tensors: vec![tensor], label, facts })
    }

    fn skip(&mut self, count: u64) -> Result<(), DataError> {
        self.at = self.at.saturating_add(usize::try_from(count).unwrap_or(usize::MAX));
        Ok(())
    }

    fn is_resumable(&self) -> bool {
        true
    }
}
