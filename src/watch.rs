//! Files that change while the gateway runs: certificates, keys, settings.
//!
//! [`Watch`] tells that they have changed, [`FromFiles`] is what was made of them and is made anew.
//!
//! Looked at once a second rather than by inotify: that sees through every symbolic link on the way
//! (Kubernetes replaces a mounted volume by turning the link `..data` to another folder), works on
//! every file system, and needs no descriptors that could run out.

use std::{
    fs, io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use arc_swap::ArcSwap;
use parking_lot::Mutex;

use crate::{clock, metrics::Metrics};

/// How often files are looked at. A change is told after two looks that saw the same, so that a
/// file that is being written, or one of two that belong together, is not read half-way.
pub const EVERY: Duration = Duration::from_secs(1);

/// Follows what is at some paths, whatever links lead there. What is there when it is made counts
/// as known: make it before reading the files, and no change is missed.
#[derive(Debug)]
pub struct Watch {
    paths: Arc<[PathBuf]>,
    known: Vec<Option<Stamp>>,
}

/// What tells one content of a path from another, without reading it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    /// Set by the kernel, so that no tool that keeps the time of modification hides a change.
    changed: (i64, i64),
}

impl Watch {
    /// Follows these paths, of which some may have nothing yet.
    pub fn new(paths: impl IntoIterator<Item = PathBuf>) -> Watch {
        let paths: Arc<[PathBuf]> = paths.into_iter().collect();
        let known = stamps(&paths);
        Watch { paths, known }
    }

    /// What is there now counts as known: to be called before the files are read for another reason.
    pub fn catch_up(&mut self) {
        self.known = stamps(&self.paths);
    }

    /// Waits until something else is at one of the paths, and has been for [`EVERY`]. What was
    /// removed is no change until something is there again. Cancel safe: a change that was not told
    /// is told by the next call.
    pub async fn changed(&mut self) {
        let mut before = self.known.clone();
        loop {
            clock::sleep(EVERY).await;
            let paths = self.paths.clone();
            // A file system that hangs must not take a thread that serves calls.
            let Ok(now) = tokio::task::spawn_blocking(move || stamps(&paths)).await else {
                continue;
            };
            let settled = now == before;
            before.clone_from(&now);
            if settled && now != self.known && now.iter().all(Option::is_some) {
                self.known = now;
                return;
            }
        }
    }
}

/// What was made of files, made anew when they change. What cannot be used is reported, and the old
/// one stays.
pub struct FromFiles<T> {
    name: &'static str,
    current: ArcSwap<T>,
    make: Arc<dyn Fn() -> io::Result<T> + Send + Sync>,
    watch: Mutex<Option<Watch>>,
}

impl<T: Send + Sync + 'static> FromFiles<T> {
    /// Reads `paths` by `make` now; `name` stands for them in the log and in the metric.
    ///
    /// # Errors
    ///
    /// That of `make`, which names setting, file and reason.
    pub fn read(
        name: &'static str,
        paths: impl IntoIterator<Item = PathBuf>,
        make: impl Fn() -> io::Result<T> + Send + Sync + 'static,
    ) -> io::Result<FromFiles<T>> {
        let watch = Watch::new(paths);
        Ok(FromFiles {
            name,
            current: ArcSwap::from_pointee(make()?),
            make: Arc::new(make),
            watch: Mutex::new(Some(watch)),
        })
    }

    /// What is in force. No lock is taken.
    pub fn get(&self) -> Arc<T> {
        self.current.load_full()
    }

    /// Makes it anew whenever the files change, for as long as it is polled. Only the first call
    /// does something.
    pub async fn follow(&self, metrics: &Metrics) {
        let watch = self.watch.lock().take();
        let Some(watch) = watch.filter(|watch| !watch.paths.is_empty()) else {
            return;
        };
        metrics.files_followed(self.name);
        let make = self.make.clone();
        let told = |made: io::Result<T>| match made {
            Ok(new) => {
                self.current.store(Arc::new(new));
                metrics.files_read(self.name, "applied");
                tracing::info!(what = self.name, "files have changed and were read again");
            }
            Err(error) => {
                metrics.files_read(self.name, "refused");
                tracing::error!(
                    what = self.name,
                    %error,
                    "files have changed and cannot be used: what was read before stays in force"
                );
            }
        };
        follow(watch, move || make(), told).await;
    }
}

/// Reads files again whenever they change and tells what was read, for as long as it is polled.
pub async fn follow<T: Send + 'static>(
    mut watch: Watch,
    read: impl Fn() -> T + Send + Sync + 'static,
    told: impl Fn(T),
) {
    let read = Arc::new(read);
    loop {
        watch.changed().await;
        let read = read.clone();
        // As with looking at them: reading may take long, and calls must not wait for it. A panic has
        // been reported.
        if let Ok(found) = tokio::task::spawn_blocking(move || read()).await {
            told(found);
        }
    }
}

fn stamps(paths: &[PathBuf]) -> Vec<Option<Stamp>> {
    paths.iter().map(|path| stamp(path)).collect()
}

fn stamp(path: &Path) -> Option<Stamp> {
    let found = fs::metadata(path).ok()?;
    Some(Stamp {
        device: found.dev(),
        inode: found.ino(),
        size: found.size(),
        modified: (found.mtime(), found.mtime_nsec()),
        changed: (found.ctime(), found.ctime_nsec()),
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    /// Whether a change is told within `time`.
    async fn told(watch: &mut Watch, time: Duration) -> bool {
        tokio::select! {
            biased;
            () = watch.changed() => true,
            () = clock::sleep(time) => false,
        }
    }

    #[tokio::test(start_paused = true)]
    async fn each_way_of_changing_a_file_should_be_told_once() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        fs::write(&path, "one").unwrap();
        let mut watch = Watch::new([path.clone()]);
        assert!(!told(&mut watch, 5 * EVERY).await, "it has not changed");
        let in_place = || fs::write(&path, "another").unwrap();
        let renamed = || {
            let beside = folder.path().join("beside");
            fs::write(&beside, "another").unwrap();
            fs::rename(&beside, &path).unwrap();
        };
        let removed_and_made = || {
            fs::remove_file(&path).unwrap();
            fs::write(&path, "again").unwrap();
        };
        for change in [&in_place as &dyn Fn(), &renamed, &removed_and_made] {
            change();
            assert!(told(&mut watch, 3 * EVERY).await);
            assert!(!told(&mut watch, 5 * EVERY).await, "once");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_volume_of_kubernetes_should_be_followed_through_its_links() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        let version = |name: &str, text: &str| {
            fs::create_dir(at(name)).unwrap();
            fs::write(at(name).join("tls.crt"), text).unwrap();
        };
        // What the kubelet makes: tls.crt -> ..data/tls.crt, ..data -> ..2026_01.
        version("..2026_01", "one");
        symlink("..2026_01", at("..data")).unwrap();
        symlink("..data/tls.crt", at("tls.crt")).unwrap();
        let mut watch = Watch::new([at("tls.crt")]);
        version("..2026_02", "two");
        assert!(!told(&mut watch, 5 * EVERY).await, "the link stands still");
        symlink("..2026_02", at("..data_tmp")).unwrap();
        fs::rename(at("..data_tmp"), at("..data")).unwrap();
        fs::remove_dir_all(at("..2026_01")).unwrap();
        assert!(told(&mut watch, 3 * EVERY).await);
        assert_eq!(fs::read_to_string(at("tls.crt")).unwrap(), "two");
    }

    #[tokio::test(start_paused = true)]
    async fn files_that_belong_together_should_be_told_together_and_when_they_rest() {
        let folder = tempfile::tempdir().unwrap();
        let paths = ["cert", "key"].map(|name| folder.path().join(name));
        let mut watch = Watch::new(paths.clone());
        fs::write(&paths[0], "cert").unwrap();
        assert!(!told(&mut watch, 5 * EVERY).await, "the other is missing");
        let writer = tokio::spawn(async move {
            for n in 0..10 {
                fs::write(&paths[1], "x".repeat(n)).unwrap();
                clock::sleep(EVERY / 2).await;
            }
            clock::now()
        });
        watch.changed().await;
        let told_at = clock::now();
        assert!(told_at >= writer.await.unwrap(), "while it was written");
        assert!(!told(&mut watch, 5 * EVERY).await, "once");
    }

    #[tokio::test(start_paused = true)]
    async fn a_change_that_nobody_waited_for_should_be_told_later() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        fs::write(&path, "one").unwrap();
        let mut watch = Watch::new([path.clone()]);
        fs::write(&path, "another").unwrap();
        assert!(!told(&mut watch, EVERY / 2).await);
        clock::sleep(10 * EVERY).await;
        assert!(told(&mut watch, 3 * EVERY).await);
    }
}
