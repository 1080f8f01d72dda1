//! Archives into the store: everything is verified, layers are unpacked in parallel, each once.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::Path;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::layer::Installed;
use crate::layout::{self, Found};
use crate::progress::{Event, Progress, Step};
use crate::reference::Reference;
use crate::source::Source;
use crate::store::{Image, Store};

/// Unpacking is bound by the processor first and by the disk soon after.
const WORKERS_MAX: usize = 4;

impl Store {
    /// Imports every image of an archive or directory: OCI layout or docker-archive, plain, gzip or zstd.
    ///
    /// `name` is given to the image in addition to the names in the archive; an archive of several images then
    /// is refused. Blocks; call it from a thread that may.
    pub fn import(
        &self,
        path: &Path,
        name: Option<&Reference>,
        progress: &dyn Progress,
    ) -> Result<Vec<Image>> {
        let _busy = self.lock_shared("busy")?;
        let source = Source::open(path, &self.inner.dir.join("tmp"), &self.inner.limits)?;
        self.import_source(&source, name, progress)
    }

    /// The same from a stream, such as standard input.
    pub fn import_stream(
        &self,
        stream: impl Read + Send,
        name: Option<&Reference>,
        progress: &dyn Progress,
    ) -> Result<Vec<Image>> {
        let _busy = self.lock_shared("busy")?;
        let spool = self.inner.dir.join("tmp");
        let source = Source::spooled("the stream".to_owned(), stream, &spool, &self.inner.limits)?;
        self.import_source(&source, name, progress)
    }

    fn import_source(
        &self,
        source: &Source,
        name: Option<&Reference>,
        progress: &dyn Progress,
    ) -> Result<Vec<Image>> {
        let found = layout::find(source, &self.inner.platform, &self.inner.limits)?;
        if name.is_some() && found.len() > 1 {
            return Err(Error::Unsupported {
                what: format!("one name for the {} images of {}", found.len(), source.name()),
                reason: "import them by the names in the archive".to_owned(),
            });
        }
        let mut images = Vec::new();
        for mut image in found {
            image.names.extend(name.cloned());
            images.push(self.import_image(source, &image, progress)?);
        }
        Ok(images)
    }

    fn import_image(&self, source: &Source, image: &Found, progress: &dyn Progress) -> Result<Image> {
        let label = image.names.first().map_or(source.name().to_owned(), ToString::to_string);
        let mut bytes = 0;
        // Equal layers (often the empty one) are the same work.
        let mut jobs = BTreeMap::new();
        for (diff_id, layer) in image.documents.diff_ids.iter().zip(&image.layers) {
            let Some(part) = source.open_file(&layer.file)? else {
                return Err(Error::corrupt(source.name(), layer.file.as_str(), "it is missing"));
            };
            bytes += part.len();
            jobs.entry(diff_id).or_insert((layer, part));
        }
        progress.report(&Event::Resolved { image: &label, layers: image.layers.len(), bytes });

        let sizes = in_parallel(jobs.into_iter().collect(), |(diff_id, (layer, part))| {
            let blob = format!("{} of {}", layer.file, source.name());
            let report = |step| progress.report(&Event::Layer { diff_id, step });
            let lock = self.lock_layer(diff_id)?;
            report(Step::Unpacking);
            let installed = self.install_layer(&lock, diff_id, &blob, layer.digest.as_ref(), part)?;
            report(match installed {
                Installed::Present(_) => Step::Present,
                Installed::New(bytes) => Step::Unpacked { bytes },
            });
            Ok((diff_id.clone(), installed.bytes()))
        })?;
        let sizes: BTreeMap<Digest, u64> = sizes.into_iter().collect();
        let image = self.commit(&image.documents, &image.names, sizes.values().sum(), true)?;
        progress.report(&Event::Stored { image: &label, id: &image.id });
        Ok(image)
    }
}

/// Runs `work` on a few threads. The first error stops those that have not begun.
fn in_parallel<J: Send, T: Send>(jobs: Vec<J>, work: impl Fn(J) -> Result<T> + Sync) -> Result<Vec<T>> {
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    let workers = processors.min(WORKERS_MAX).min(jobs.len());
    let failed = AtomicBool::new(false);
    let jobs = Mutex::new(jobs.into_iter());
    let next = || jobs.lock().unwrap_or_else(PoisonError::into_inner).next();
    let run = || {
        let mut done = Vec::new();
        while !failed.load(Ordering::Relaxed)
            && let Some(job) = next()
        {
            match work(job) {
                Ok(result) => done.push(result),
                Err(error) => {
                    failed.store(true, Ordering::Relaxed);
                    return Err(error);
                }
            }
        }
        Ok(done)
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..workers).map(|_| scope.spawn(run)).collect();
        let mut all = Vec::new();
        let mut first_error = None;
        for thread in threads {
            match thread.join() {
                Ok(Ok(done)) => all.extend(done),
                Ok(Err(error)) => first_error = first_error.or(Some(error)),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
        first_error.map_or(Ok(all), Err)
    })
}
