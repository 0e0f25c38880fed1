//! The state file: what a process that is killed leaves to the next one about its windows.
//!
//! - [`record`] is the format.
//! - [`ledger`] is what records say about the windows.
//!
//! Before an attempt leaves, its slots are written with one `write(2)`; the page cache outlives
//! the process, so nothing is synced. What comes back (a reply, a loss, a refund) only shortens what
//! was written before, so it waits in memory for the next write or the sweep: if it is lost, a slot
//! is held for longer than it need be.
//!
//! A system call for each attempt is dear. Of a window of many slots a fiftieth is therefore taken
//! before it is written, and the file says so beforehand. Whoever finds such a file knows that of
//! each window of that class so many slots may be missing, and holds as many; the sweep takes that
//! back where nothing was taken since the last.
//!
//! ```text
//!   FILE        the records              FILE.lock            held by the process that uses FILE
//!   FILE.new    a compaction under way   FILE.foreign-TIME    what was there and was not ours
//! ```
//!
//! A compaction reads what the file holds, writes what of it is busy to `FILE.new`, copies what was
//! appended meanwhile and renames it over `FILE`. Whenever that is cut short, `FILE` is whole.
//!
//! Times in the file are those of the monotonic clock, counted from the wall clock as it was at the
//! start. When the two part, the wall clock was moved, and a record says by how much.

pub mod ledger;
pub mod record;

use std::{
    fs::{File, OpenOptions, TryLockError},
    io::{self, Read as _, Write as _},
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use self::{
    ledger::{Damage, Ledger, Paces, duration, micros},
    record::{Event, HEADER, LENGTH, Micros, Record, WindowClass, WindowId},
};
use crate::{
    clock::{self, Instant},
    sharded::Map,
    sync::Mutex,
};

/// No file is compacted before it is so long.
const COMPACT_FROM: u64 = 1 << 20;

/// A file is compacted when it is so many times as long as what was busy in it.
const COMPACT_GROWTH: u64 = 4;

/// What comes back is written without waiting for the next attempt when there is so much of it.
const PENDING: usize = 1 << 16;

/// What is kept while the file cannot be written. More is forgotten, and that is said.
const PENDING_MAX: usize = 1 << 20;

/// Clocks that are further apart than this have been moved.
const CLOCK_MOVED: Duration = Duration::from_millis(50);

/// What is remembered is held for so much longer: two processes read the wall clock, and it may have
/// crept by [`CLOCK_MOVED`].
const CLOCK_SLACK: Duration = Duration::from_millis(100);

/// The file, locked for this process.
#[derive(Debug)]
pub struct Journal {
    path: PathBuf,
    inner: Mutex<Inner>,
    remembered: Mutex<Remembered>,
    /// What was remembered at the start.
    pub summary: Summary,
    /// Unlocked when it is closed.
    lock: File,
}

/// Slots that are busy, and until when.
pub type Slot = (Instant, u32);

/// What was remembered at the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// Windows in which slots are busy.
    pub windows: usize,
    /// Slots that are busy.
    pub slots: u64,
    /// Slots that may be busy in each window beside those, of the class where they are most.
    pub missing: u32,
    /// The upstream was seen to count the pairs of message extensions.
    pub counts_pairs: bool,
}

/// What was remembered at the start and no window was told yet.
#[derive(Debug, Default)]
struct Remembered {
    windows: Map<WindowId, Vec<Slot>>,
    /// Slots of each window of a class.
    missing: Vec<(WindowClass, Slot)>,
}

#[derive(Debug)]
struct Inner {
    paces: Paces,
    file: File,
    /// How often it was written.
    writes: u32,
    /// The classes of which slots may be taken before they are written down.
    ahead: Vec<Ahead>,
    /// The part of the file that is whole: a write that failed may have left more.
    length: u64,
    compact_at: u64,
    /// Records that are still to be written.
    pending: Vec<u8>,
    /// The last write failed. Said once, and tried again by the sweep only.
    broken: bool,
    /// Records that had no room while it was.
    forgotten: u64,
    /// One moment on both clocks.
    base: (Instant, Micros),
}

/// A class of which slots may be taken before they are written down, as the file says.
#[derive(Debug)]
struct Ahead {
    class: WindowClass,
    /// Of each window.
    slots: u32,
    /// Whether any was taken since the last sweep.
    in_use: bool,
}

/// The place of one window in the journal.
#[derive(Debug)]
pub struct Page {
    journal: Arc<Journal>,
    window: WindowId,
    /// How often the file had been written, and the slots that were taken since.
    unwritten: AtomicU64,
}

/// Writes what became of slots of up to two windows, `None` for one that is not written down. What
/// was taken is in the file when this returns, but for so many slots as the file says may be missing.
pub fn write(event: Event, at: Instant, places: [Option<(&Page, u32)>; 2]) {
    let Some((page, _)) = places.iter().flatten().next() else {
        return;
    };
    let mut inner = page.journal.inner.lock();
    let at = inner.time(at);
    let mut is_due = inner.pending.len() >= PENDING;
    for (page, slots) in places.into_iter().flatten() {
        if event == Event::Taken && !page.runs_ahead(&mut inner, slots) {
            is_due = true;
        }
        inner.put(&Record::Slots {
            event,
            window: page.window,
            slots,
            at,
        });
    }
    if is_due {
        page.journal.flush(&mut inner);
    }
}

impl Page {
    /// The page of `window`.
    pub fn new(journal: Arc<Journal>, window: WindowId) -> Page {
        Page {
            journal,
            window,
            unwritten: AtomicU64::new(0),
        }
    }

    /// Whether `slots` more may be taken before they are in the file, which says so already.
    fn runs_ahead(&self, inner: &mut Inner, slots: u32) -> bool {
        let most = inner.paces.unwritten(self.window.class);
        if most == 0 {
            return false;
        }
        let is_said = inner.runs_ahead(self.window.class, most);
        // Under the lock of the journal.
        let unwritten = self.unwritten.load(Ordering::Relaxed);
        let [writes, before] = [unwritten >> 32, unwritten & u64::from(u32::MAX)];
        let before = if writes == u64::from(inner.writes) {
            before
        } else {
            0
        };
        let all = before + u64::from(slots);
        let all = all.min(u64::from(u32::MAX));
        let unwritten = u64::from(inner.writes) << 32 | all;
        self.unwritten.store(unwritten, Ordering::Relaxed);
        is_said && all <= u64::from(most)
    }

    /// When the slots that the process before this one held are free, latest first, call by call.
    /// Told once: after that the window itself knows.
    pub fn recall(&self) -> impl Iterator<Item = Slot> + use<> {
        let mut remembered = self.journal.remembered.lock();
        let slots = remembered.windows.remove(&self.window);
        let mut slots = slots.unwrap_or_default();
        for &(class, (until, missing)) in &remembered.missing {
            if class == self.window.class {
                // They may have been as many calls.
                slots.extend(std::iter::repeat_n((until, 1), missing as usize));
            }
        }
        drop(remembered);
        slots.sort_unstable_by(|one, other| other.cmp(one));
        slots.into_iter()
    }

    /// The upstream was seen to count the pairs of message extensions: the next process need not
    /// find out again.
    pub fn counts_pairs(&self) {
        let mut inner = self.journal.inner.lock();
        inner.put(&Record::CountsPairs);
        self.journal.flush(&mut inner);
    }
}

impl Journal {
    /// Opens the file and reads it. `None`, and the reason in the log, if it cannot be used; an
    /// error if another process uses it, since two that do not know of each other would both spend
    /// what is left.
    pub fn open(path: &Path, paces: Paces) -> io::Result<Option<Journal>> {
        let lock = match lock(path) {
            Ok(lock) => lock,
            Err(TryLockError::WouldBlock) => {
                return Err(io::Error::new(
                    io::ErrorKind::ResourceBusy,
                    format!(
                        "state.file: {} is used by another process; each gateway needs a file of \
                         its own",
                        path.display()
                    ),
                ));
            }
            Err(TryLockError::Error(error)) => {
                cannot_use(path, &error);
                return Ok(None);
            }
        };
        match Journal::start(path, paces, lock) {
            Ok(journal) => Ok(Some(journal)),
            Err(error) => {
                cannot_use(path, &error);
                Ok(None)
            }
        }
    }

    fn start(path: &Path, paces: Paces, lock: File) -> io::Result<Journal> {
        let now = clock::now();
        let now_there = micros(clock::unix_now());
        let mut ledger = read(path)?;
        report(path, ledger.damage);
        let ahead = ledger.ahead_of(now_there);
        if ahead > Duration::from_secs(1) {
            tracing::warn!(
                file = %path.display(),
                seconds = ahead.as_secs(),
                "the clock was set back since the state file was written: what it holds is taken \
                 to have just happened"
            );
        }
        ledger.bury(&paces, now_there);

        let mut remembered = Remembered::default();
        let mut summary = Summary {
            counts_pairs: ledger.counts_pairs,
            ..Summary::default()
        };
        for missing in ledger.missing(&paces, now_there) {
            let until = now + missing.left + CLOCK_SLACK;
            remembered
                .missing
                .push((missing.class, (until, missing.slots)));
        }
        summary.missing = remembered.most_missing();
        let mut content = beginning(&ledger, &paces, now_there);
        for busy in ledger.busy(&paces, now_there) {
            content.extend_from_slice(&busy.record().encode());
            let slots = remembered.windows.entry(busy.window).or_default();
            slots.push((now + busy.left + CLOCK_SLACK, busy.slots));
            summary.slots += u64::from(busy.slots);
        }
        summary.windows = remembered.windows.len();
        let file = fresh(path, &content)?;
        std::fs::rename(beside(path, ".new"), path)?;
        Ok(Journal {
            path: path.to_owned(),
            inner: Mutex::new(Inner {
                paces,
                file,
                writes: 0,
                ahead: Vec::new(),
                length: content.len() as u64,
                compact_at: compact_at(content.len() as u64),
                pending: Vec::new(),
                broken: false,
                forgotten: 0,
                base: (now, now_there),
            }),
            remembered: Mutex::new(remembered),
            summary,
            lock,
        })
    }

    /// From now on slots cool for so long, those that are written down too.
    pub fn set_paces(&self, paces: Paces) {
        self.inner.lock().paces = paces;
    }

    /// Writes what is pending, says of which classes nothing is taken before it is written any more,
    /// notices that the clock was moved, tries again after a failure, and forgets what was remembered
    /// and has passed.
    pub fn sweep(&self) {
        let now = clock::now();
        let mut inner = self.inner.lock();
        inner.notice_moved_clock(now, micros(clock::unix_now()));
        inner.rest();
        if inner.broken && inner.file.set_len(inner.length).is_ok() {
            self.retry(&mut inner);
        } else if !inner.broken {
            self.flush(&mut inner);
        }
        drop(inner);
        let mut remembered = self.remembered.lock();
        let is_busy = |(until, _): &Slot| *until > now;
        remembered.missing.retain(|(_, slot)| is_busy(slot));
        let windows = &mut remembered.windows;
        windows.retain(|_, slots| slots.iter().any(is_busy));
        crate::sharded::give_back_memory(windows);
    }

    /// Whether it is time to [`compact`](Self::compact).
    pub fn has_grown(&self) -> bool {
        let inner = self.inner.lock();
        inner.length > inner.compact_at && !inner.broken
    }

    /// Leaves what is busy in the file and nothing else. Takes as long as reading the file; attempts
    /// wait only while the end of it is copied. One at a time.
    pub fn compact(&self) {
        let Err(error) = self.try_compact() else {
            return;
        };
        let _ = std::fs::remove_file(beside(&self.path, ".new"));
        let mut inner = self.inner.lock();
        // Not at every sweep: the file is still right, only longer than it need be.
        inner.compact_at = inner.length.saturating_mul(2);
        tracing::error!(
            file = %self.path.display(),
            bytes = inner.length,
            %error,
            "the state file cannot be compacted and grows"
        );
    }

    fn try_compact(&self) -> io::Result<()> {
        let (paces, file, length, now) = {
            let inner = self.inner.lock();
            (
                inner.paces.clone(),
                inner.file.try_clone()?,
                inner.length,
                inner.time(clock::now()),
            )
        };
        let header = HEADER.len() as u64;
        let ledger = Ledger::read(&part(&file, header, length)?);
        let mut content = beginning(&ledger, &paces, now);
        for busy in ledger.busy(&paces, now) {
            content.extend_from_slice(&busy.record().encode());
        }
        drop(ledger);
        let mut new = fresh(&self.path, &content)?;

        let mut inner = self.inner.lock();
        let tail = part(&file, length, inner.length)?;
        new.write_all(&tail)?;
        std::fs::rename(beside(&self.path, ".new"), &self.path)?;
        inner.file = new;
        inner.length = (content.len() + tail.len()) as u64;
        inner.compact_at = compact_at(inner.length);
        Ok(())
    }

    fn flush(&self, inner: &mut Inner) {
        if inner.broken || inner.pending.is_empty() {
            return;
        }
        if let Err(error) = inner.write() {
            inner.broken = true;
            tracing::error!(
                file = %self.path.display(),
                %error,
                "the state file cannot be written: what is sent from now on may be forgotten at a \
                 restart"
            );
        }
    }

    fn retry(&self, inner: &mut Inner) {
        if inner.write().is_ok() {
            inner.broken = false;
            let forgotten_records = std::mem::take(&mut inner.forgotten);
            if forgotten_records > 0 {
                // That some are ahead of the file may be among them, and is said anew.
                inner.ahead.clear();
            }
            tracing::info!(
                file = %self.path.display(),
                forgotten_records,
                "the state file is written again"
            );
        }
    }
}

impl Drop for Journal {
    /// What came back last is still to be written when the process stops in good order.
    fn drop(&mut self) {
        let inner = self.inner.get_mut();
        for ahead in &mut inner.ahead {
            ahead.in_use = false;
        }
        inner.rest();
        if !inner.broken {
            // A slot that is not known to be free is held for longer.
            let _ = inner.write();
        }
        // A process that was started meanwhile has the lock file open, too, until it runs a program
        // of its own: closing it here would leave it locked.
        let _ = self.lock.unlock();
    }
}

impl Inner {
    /// `at` on the clock of the file.
    fn time(&self, at: Instant) -> Micros {
        let (base, there) = self.base;
        let later = micros(at.saturating_duration_since(base));
        let earlier = micros(base.saturating_duration_since(at));
        there.saturating_add(later).saturating_sub(earlier)
    }

    fn put(&mut self, record: &Record) {
        if self.pending.len() + LENGTH > PENDING_MAX {
            self.forgotten += 1;
        } else {
            self.pending.extend_from_slice(&record.encode());
        }
    }

    /// Whether the file says that `most` slots of each window of a class may be taken before they are
    /// written down. If not, that is pending now.
    fn runs_ahead(&mut self, class: WindowClass, most: u32) -> bool {
        let ahead = self.ahead.iter_mut().find(|ahead| ahead.class == class);
        if let Some(ahead) = ahead
            && ahead.slots >= most
        {
            ahead.in_use = true;
            return true;
        }
        self.ahead.retain(|ahead| ahead.class != class);
        self.ahead.push(Ahead {
            class,
            slots: most,
            in_use: true,
        });
        self.put(&Record::Unwritten { class, slots: most });
        false
    }

    /// Of what was not in use since the last time, nothing is missing after the next write.
    fn rest(&mut self) {
        let mut ahead = std::mem::take(&mut self.ahead);
        ahead.retain_mut(|ahead| {
            let in_use = std::mem::take(&mut ahead.in_use);
            if !in_use {
                let (class, slots) = (ahead.class, 0);
                self.put(&Record::Unwritten { class, slots });
            }
            in_use
        });
        self.ahead = ahead;
    }

    fn notice_moved_clock(&mut self, now: Instant, now_there: Micros) {
        let by = now_there.saturating_sub(self.time(now));
        if duration(by.saturating_abs()) > CLOCK_MOVED {
            self.put(&Record::Clock { by });
            self.base = (now, now_there);
        }
    }

    fn write(&mut self) -> io::Result<()> {
        self.file.write_all(&self.pending)?;
        self.writes = self.writes.wrapping_add(1);
        self.length += self.pending.len() as u64;
        self.pending.clear();
        // An outage leaves more room than is ever needed.
        self.pending.shrink_to(PENDING);
        Ok(())
    }
}

impl Remembered {
    /// Slots that may be missing in each window, of the class where they are most.
    fn most_missing(&self) -> u32 {
        let of_class = |of: WindowClass| {
            let missing = self.missing.iter().filter(|(class, _)| *class == of);
            missing.map(|(_, (_, slots))| slots).sum()
        };
        let classes = self.missing.iter().map(|(class, _)| of_class(*class));
        classes.max().unwrap_or(0)
    }
}

/// The header, and what holds for all windows.
fn beginning(ledger: &Ledger, paces: &Paces, now: Micros) -> Vec<u8> {
    let mut content = HEADER.to_vec();
    for record in ledger.beginning(paces, now) {
        content.extend_from_slice(&record.encode());
    }
    content
}

fn lock(path: &Path) -> Result<File, TryLockError> {
    let mut options = OpenOptions::new();
    let file = options.write(true).create(true).truncate(false);
    let file = file
        .open(beside(path, ".lock"))
        .map_err(TryLockError::Error)?;
    file.try_lock()?;
    Ok(file)
}

/// What the file at `path` says; nothing, if there is none or it is not ours.
fn read(path: &Path) -> io::Result<Ledger> {
    let mut file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Ledger::default()),
        Err(error) => return Err(error),
    };
    let mut header = Vec::new();
    (&mut file)
        .take(HEADER.len() as u64)
        .read_to_end(&mut header)?;
    if header == HEADER {
        let mut records = Vec::new();
        file.read_to_end(&mut records)?;
        return Ok(Ledger::read(&records));
    }
    if HEADER.starts_with(&header) {
        // Torn where it began, or made empty by whoever set the permissions.
        let mut ledger = Ledger::default();
        ledger.damage.torn_bytes = header.len();
        return Ok(ledger);
    }
    let aside = beside(path, &format!(".foreign-{}", clock::unix_now().as_secs()));
    std::fs::rename(path, &aside)?;
    tracing::error!(
        file = %path.display(),
        moved_to = %aside.display(),
        "the state file was not written by this version of chat-gateway and is set aside: windows \
         start empty, what a process before this one sent in them is not known"
    );
    Ok(Ledger::default())
}

/// `FILE.new` with this content, open for more.
fn fresh(path: &Path, content: &[u8]) -> io::Result<File> {
    let new = beside(path, ".new");
    // One that was cut short may be left over.
    if let Err(error) = std::fs::remove_file(&new)
        && error.kind() != io::ErrorKind::NotFound
    {
        return Err(error);
    }
    let mut options = OpenOptions::new();
    let mut file = options
        .read(true)
        .append(true)
        .create_new(true)
        .open(&new)?;
    file.write_all(content)?;
    Ok(file)
}

fn part(file: &File, from: u64, to: u64) -> io::Result<Vec<u8>> {
    let length = usize::try_from(to - from).map_err(io::Error::other)?;
    let mut bytes = vec![0; length];
    file.read_exact_at(&mut bytes, from)?;
    Ok(bytes)
}

fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}

fn compact_at(length: u64) -> u64 {
    COMPACT_FROM.max(length * COMPACT_GROWTH)
}

fn report(path: &Path, damage: Damage) {
    if damage != Damage::default() {
        tracing::error!(
            file = %path.display(),
            damaged_records = damage.records,
            torn_bytes = damage.torn_bytes,
            "the state file is damaged: what can be read of it is kept"
        );
    }
}

fn cannot_use(path: &Path, error: &io::Error) {
    tracing::error!(
        file = %path.display(),
        %error,
        "the state file cannot be used: windows start empty and are forgotten at a restart"
    );
}

#[cfg(test)]
mod tests;
