//! Signing for callers who do not: `usersig`, and `sdkappid` and `identifier` where they are
//! missing.
//!
//! All calls of an app get the same signature until it is renewed, so that they can travel
//! together.

mod usersig;

use std::{
    fs::File,
    io::Read as _,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use http::uri::PathAndQuery;
use parking_lot::RwLock;
use secrecy::{ExposeSecret as _, SecretString};
use zeroize::Zeroizing;

use crate::{
    clock,
    config::{Credentials, Mistake, Mistakes, Origin},
    error::{self, Refusal},
    validate::parameters,
};

/// How long a signature is good.
const EXPIRE: Duration = Duration::from_hours(48);

/// When it is renewed: whoever takes one has it for another day, which is as long as the longest
/// `queue.deadline`, and what the vendor calls the least (70001).
const RENEWED: Duration = Duration::from_hours(24);

/// How far the wall clock may go back before a signature counts as one of the future.
const TURNED_BACK: Duration = Duration::from_hours(1);

/// The longest secret key that is taken; the console's have 64 letters.
const KEY_MAX: usize = 1_024;

/// Signs for every app of the settings.
#[derive(Debug, Default)]
pub struct Signers(Vec<Signer>);

/// Signs for one app, in the name of one administrator.
#[derive(Debug)]
pub struct Signer {
    sdkappid: u64,
    identifier: String,
    file: PathBuf,
    signed: RwLock<Signed>,
}

#[derive(Debug)]
struct Signed {
    key: SecretString,
    usersig: Arc<SecretString>,
    /// On the wall clock.
    at: Duration,
}

impl Signers {
    /// Reads the key of each app and signs.
    ///
    /// # Errors
    ///
    /// Every key file that cannot be used.
    pub fn open(settings: &[Credentials]) -> Result<Signers, Mistakes> {
        let mut signers = Vec::new();
        let mut mistakes = Vec::new();
        for app in settings {
            match read_key(&app.secret_key_file) {
                Ok(key) => signers.push(Signer::new(app, key, clock::unix_now())),
                Err(mistake) => mistakes.push(mistake),
            }
        }
        if mistakes.is_empty() {
            Ok(Signers(signers))
        } else {
            Err(Mistakes(mistakes))
        }
    }

    /// The signer of each app.
    pub fn each(&self) -> impl Iterator<Item = &Signer> {
        self.0.iter()
    }

    /// `target` with what it lacks behind its query, or in the place of a value that is empty; `None`
    /// if it is to stay as it is, since the caller has signed it or nobody signs here.
    ///
    /// # Errors
    ///
    /// Why it is not signed, though the caller has not signed it either.
    pub fn complete(&self, target: &PathAndQuery) -> Result<Option<PathAndQuery>, Refusal> {
        if self.0.is_empty() {
            return Ok(None);
        }
        let query = target.query().unwrap_or_default();
        let given = Given::of(query);
        if given.usersig.is_some() {
            return Ok(None);
        }
        let signer = match (given.sdkappid, &self.0[..]) {
            (None, [only]) => only,
            (None, _) => {
                return Err(Refusal::invalid(
                    error::NO_APP,
                    "the URL has no sdkappid, and the gateway signs for several apps: name one",
                ));
            }
            (Some(text), signers) => {
                let app = text.parse().ok();
                let signer = signers.iter().find(|signer| Some(signer.sdkappid) == app);
                signer.ok_or_else(|| {
                    Refusal::invalid(
                        error::NO_SIGNATURE,
                        "usersig in the URL is missing or empty, and the gateway does not sign \
                         for this sdkappid",
                    )
                })?
            }
        };
        if given
            .identifier
            .is_some_and(|text| !is_encoded(text, &signer.identifier))
        {
            return Err(Refusal::invalid(
                error::NO_SIGNATURE,
                "usersig in the URL is missing or empty, and the gateway does not sign for this \
                 identifier: leave identifier out, or sign",
            ));
        }
        let usersig = signer.usersig(clock::unix_now());
        let mut filled = Filled::new(target);
        if given.sdkappid.is_none() {
            filled.put("sdkappid", &signer.sdkappid.to_string());
        }
        if given.identifier.is_none() {
            let identifier = form_urlencoded::byte_serialize(signer.identifier.as_bytes());
            // That writes a space as `+`, which some servers leave as it is.
            let identifier: String = identifier.collect::<String>().replace('+', "%20");
            filled.put("identifier", &identifier);
        }
        filled.put("usersig", usersig.expose_secret());
        filled.target().map(Some)
    }
}

impl Signer {
    fn new(settings: &Credentials, key: SecretString, now: Duration) -> Signer {
        let (sdkappid, identifier) = (settings.sdkappid, settings.identifier.clone());
        let signed = Signed::new(key, sdkappid, &identifier, now);
        Signer {
            sdkappid,
            identifier,
            file: settings.secret_key_file.clone(),
            signed: RwLock::new(signed),
        }
    }

    /// The app.
    pub fn sdkappid(&self) -> u64 {
        self.sdkappid
    }

    /// Where its key is.
    pub fn file(&self) -> &Path {
        &self.file
    }

    /// Reads the key again and signs with it if it is another one; says whether it is.
    ///
    /// # Errors
    ///
    /// What is wrong with the file: then the key from before holds on.
    pub fn reread(&self) -> Result<bool, Mistakes> {
        let key = read_key(&self.file).map_err(|mistake| Mistakes(vec![mistake]))?;
        let mut signed = self.signed.write();
        if signed.key.expose_secret() == key.expose_secret() {
            return Ok(false);
        }
        *signed = Signed::new(key, self.sdkappid, &self.identifier, clock::unix_now());
        Ok(true)
    }

    /// The signature, renewed if it is time.
    fn usersig(&self, now: Duration) -> Arc<SecretString> {
        let signed = self.signed.read();
        if !signed.is_due(now) {
            return signed.usersig.clone();
        }
        drop(signed);
        let mut signed = self.signed.write();
        // Somebody else may have renewed it meanwhile.
        if signed.is_due(now) {
            *signed = Signed::new(signed.key.clone(), self.sdkappid, &self.identifier, now);
            tracing::info!(sdkappid = self.sdkappid, "the signature is renewed");
        }
        signed.usersig.clone()
    }
}

impl Signed {
    fn new(key: SecretString, sdkappid: u64, identifier: &str, now: Duration) -> Signed {
        let time = now.as_secs();
        let usersig = usersig::usersig(&key, sdkappid, identifier, time, EXPIRE.as_secs());
        Signed {
            key,
            usersig: Arc::new(usersig.into()),
            at: now,
        }
    }

    fn is_due(&self, now: Duration) -> bool {
        now >= self.at + RENEWED || now + TURNED_BACK < self.at
    }
}

/// What of the credentials a query holds; an empty value is none.
#[derive(Default)]
struct Given<'a> {
    sdkappid: Option<&'a str>,
    identifier: Option<&'a str>,
    usersig: Option<&'a str>,
}

impl<'a> Given<'a> {
    fn of(query: &'a str) -> Given<'a> {
        let mut given = Given::default();
        for (name, value, _) in parameters(query) {
            let place = match name {
                "sdkappid" => &mut given.sdkappid,
                "identifier" => &mut given.identifier,
                "usersig" => &mut given.usersig,
                _ => continue,
            };
            if place.is_none() && !value.is_empty() {
                *place = Some(value);
            }
        }
        given
    }
}

/// A target that is being completed.
struct Filled {
    path_bytes: usize,
    text: String,
}

impl Filled {
    fn new(target: &PathAndQuery) -> Filled {
        let path_bytes = target.path().len();
        let mut text = String::with_capacity(target.as_str().len() + 320);
        text.push_str(target.as_str());
        if text.len() == path_bytes {
            text.push('?');
        }
        Filled { path_bytes, text }
    }

    /// Puts a parameter where its name stands without a value, else at the end.
    fn put(&mut self, name: &str, value: &str) {
        let start = self.path_bytes + 1;
        let empty = parameters(&self.text[start..])
            .find(|(own, ..)| *own == name)
            .map(|(_, _, at)| start + at.end);
        if let Some(end) = empty {
            self.text.insert_str(end, value);
            if !self.text[..end].ends_with('=') {
                self.text.insert(end, '=');
            }
            return;
        }
        if self.text.len() > start && !self.text.ends_with('&') {
            self.text.push('&');
        }
        self.text.extend([name, "=", value]);
    }

    fn target(self) -> Result<PathAndQuery, Refusal> {
        let length = self.text.len();
        PathAndQuery::from_maybe_shared(Bytes::from(self.text)).map_err(|_| {
            Refusal::invalid(
                error::BAD_REQUEST,
                format!("the URL is {length} bytes with the signature, the limit is 65534"),
            )
        })
    }
}

/// Whether `text` is `plain`, perhaps with some of its letters as `%41`.
fn is_encoded(text: &str, plain: &str) -> bool {
    // `+` is a letter like the others here.
    let text = text.replace('+', "%2B");
    let mut decoded = form_urlencoded::parse(text.as_bytes());
    let first = decoded.next();
    first.is_some_and(|(name, value)| name == plain && value.is_empty())
}

/// The key in a file, without the white space around it.
fn read_key(path: &Path) -> Result<SecretString, Mistake> {
    let wrong = |message: String| Mistake {
        origin: Origin::Unreadable(path.display().to_string()),
        message,
    };
    // Room for all of it from the start: growing would leave copies behind.
    let mut bytes = Zeroizing::new(Vec::with_capacity(KEY_MAX + 2));
    File::open(path)
        .and_then(|file| file.take(KEY_MAX as u64 + 2).read_to_end(&mut bytes))
        .map_err(|error| {
            wrong(format!(
                "the secret key (credentials.secret_key_file) cannot be read: {error}"
            ))
        })?;
    let key = bytes.trim_ascii();
    if key.is_empty() {
        return Err(wrong(
            "is empty; write the secret key of the app into it (credentials.secret_key_file)"
                .to_owned(),
        ));
    }
    let text = str::from_utf8(key).ok();
    match text.filter(|text| text.bytes().all(|byte| byte.is_ascii_graphic())) {
        Some(key) if bytes.len() <= KEY_MAX => Ok(key.into()),
        _ => Err(wrong(format!(
            "is not the secret key of an app (credentials.secret_key_file): one line of up to \
             {KEY_MAX} letters and digits"
        ))),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    const KEY: &str = "5bd2850fff3ecb11d7c805251c51ee46";

    fn signer(sdkappid: u64, identifier: &str) -> Signer {
        let settings = Credentials {
            sdkappid,
            identifier: identifier.to_owned(),
            secret_key_file: PathBuf::new(),
        };
        Signer::new(&settings, KEY.into(), clock::unix_now())
    }

    fn usersig(signer: &Signer) -> String {
        signer.usersig(clock::unix_now()).expose_secret().to_owned()
    }

    #[track_caller]
    fn check(signers: &Signers, target: &str, expected: &str) {
        let signed = usersig(&signers.0[0]);
        let complete = signers.complete(&target.parse().unwrap()).unwrap();
        let text = complete.map(|target| target.as_str().replace(&signed, "SIG"));
        assert_eq!(text.as_deref().unwrap_or("as it is"), expected, "{target}");
    }

    #[track_caller]
    fn check_refused(signers: &Signers, target: &str, code: i32, part: &str) {
        let refusal = signers.complete(&target.parse().unwrap()).unwrap_err();
        assert_eq!(refusal.code, code, "{target}: {refusal:?}");
        assert!(refusal.info.contains(part), "{target}: {refusal:?}");
    }

    #[test]
    fn what_is_missing_should_be_put_behind_what_is_there() {
        let one = Signers(vec![signer(1, "admin")]);
        let all = "sdkappid=1&identifier=admin&usersig=SIG";
        for (target, expected) in [
            ("/a", format!("/a?{all}")),
            ("/a?", format!("/a?{all}")),
            ("/a?x=%2a&y", format!("/a?x=%2a&y&{all}")),
            ("/a?x=1&", format!("/a?x=1&{all}")),
            (
                "/a?sdkappid=1&random=2",
                "/a?sdkappid=1&random=2&identifier=admin&usersig=SIG".into(),
            ),
            (
                "/a?identifier=admin",
                "/a?identifier=admin&sdkappid=1&usersig=SIG".into(),
            ),
            (
                "/a?sdkappid=1&identifier=%61dmin",
                "/a?sdkappid=1&identifier=%61dmin&usersig=SIG".into(),
            ),
            (
                "/a?usersig=&sdkappid=&x=1&identifier",
                "/a?usersig=SIG&sdkappid=1&x=1&identifier=admin".into(),
            ),
        ] {
            check(&one, target, &expected);
        }
    }

    #[test]
    fn whoever_signs_should_be_left_alone() {
        let one = Signers(vec![signer(1, "admin")]);
        for target in [
            "/a?usersig=x",
            "/a?sdkappid=2&identifier=b&usersig=x",
            "/a?usersig=&usersig=x",
        ] {
            check(&one, target, "as it is");
        }
        assert_eq!(
            Signers::default().complete(&"/a".parse().unwrap()),
            Ok(None)
        );
    }

    #[test]
    fn the_sdkappid_of_the_caller_should_choose_among_several_apps() {
        let two = Signers(vec![signer(2, "b"), signer(1, "a")]);
        check(
            &two,
            "/a?sdkappid=2",
            "/a?sdkappid=2&identifier=b&usersig=SIG",
        );
        check_refused(&two, "/a?identifier=a", error::NO_APP, "several apps");
        check_refused(&two, "/a?sdkappid=3", error::NO_SIGNATURE, "this sdkappid");
        check_refused(&two, "/a?sdkappid=x", error::NO_SIGNATURE, "this sdkappid");
        let other = "/a?sdkappid=1&identifier=b";
        check_refused(&two, other, error::NO_SIGNATURE, "this identifier");
    }

    #[test]
    fn an_identifier_should_be_written_so_that_no_letter_of_it_ends_the_value() {
        let one = Signers(vec![signer(1, "a&b=c d+é%")]);
        let encoded = "a%26b%3Dc%20d%2B%C3%A9%25";
        check(
            &one,
            "/a",
            &format!("/a?sdkappid=1&identifier={encoded}&usersig=SIG"),
        );
        let again = format!("/a?sdkappid=1&identifier={encoded}");
        check(&one, &again, &format!("{again}&usersig=SIG"));
    }

    #[test]
    fn a_target_should_not_outgrow_what_http_takes() {
        let one = Signers(vec![signer(1, "admin")]);
        let target = format!("/{}", "x".repeat(65_500));
        check_refused(&one, &target, error::BAD_REQUEST, "the limit is 65534");
    }

    #[test]
    fn a_signature_should_be_the_same_until_it_is_renewed_once() {
        let signer = signer(1, "admin");
        let first = usersig(&signer);
        let made = signer.signed.read().at;
        let at = |now: Duration| signer.usersig(now).expose_secret().to_owned();
        let second = Duration::from_secs(1);
        assert_eq!(at(made + RENEWED.saturating_sub(second)), first);
        assert_eq!(at(made.saturating_sub(TURNED_BACK)), first);
        let renewed = at(made + RENEWED);
        assert_ne!(renewed, first);
        assert_eq!(at(made + RENEWED + second), renewed);
        // The clock was wrong and is put right.
        let right = at(made.saturating_sub(second));
        assert_ne!(right, renewed);
        assert_eq!(at(made), right);
    }

    #[test]
    fn keys_and_signatures_should_not_print() {
        let signers = Signers(vec![signer(1, "admin")]);
        let shown = format!("{signers:?}");
        assert!(shown.contains("admin"), "{shown}");
        assert!(!shown.contains(&KEY[..8]), "{shown}");
        assert!(!shown.contains(&usersig(&signers.0[0])), "{shown}");
    }

    #[test]
    fn a_key_file_should_hold_one_key() {
        let check = |bytes: &[u8]| {
            let mut file = tempfile::NamedTempFile::new().unwrap();
            file.write_all(bytes).unwrap();
            let key = read_key(file.path());
            key.map(|key| key.expose_secret().to_owned())
                .map_err(|mistake| mistake.message)
        };
        for text in ["k3y", "k3y\n", "  k3y\r\n\n"] {
            assert_eq!(check(text.as_bytes()).as_deref(), Ok("k3y"), "{text:?}");
        }
        let longest = "k".repeat(KEY_MAX);
        assert_eq!(check(longest.as_bytes()), Ok(longest));
        assert!(check(b" \n").unwrap_err().starts_with("is empty; "));
        let long = "s3cret".repeat(KEY_MAX);
        for wrong in [
            &b"s3cret k3y"[..],
            b"s3cret\nk3y",
            b"s3cret\xff",
            long.as_bytes(),
        ] {
            let message = check(wrong).unwrap_err();
            assert!(message.starts_with("is not the secret key"), "{message}");
            assert!(!message.contains("s3cret"), "{message}");
        }
    }

    #[test]
    fn a_key_that_changes_should_sign_from_then_on() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(b"first").unwrap();
        let settings = Credentials {
            sdkappid: 1,
            identifier: "a".to_owned(),
            secret_key_file: file.path().to_owned(),
        };
        let signers = Signers::open(std::slice::from_ref(&settings)).unwrap();
        let signer = &signers.0[0];
        let before = usersig(signer);
        assert_eq!(signer.reread(), Ok(false));
        assert_eq!(usersig(signer), before);
        std::fs::write(file.path(), "").unwrap();
        assert!(signer.reread().is_err());
        assert_eq!(usersig(signer), before);
        std::fs::write(file.path(), "second").unwrap();
        assert_eq!(signer.reread(), Ok(true));
        assert_ne!(usersig(signer), before);
        drop(file);
        let mistakes = Signers::open(&[settings.clone(), settings]).unwrap_err();
        assert_eq!(mistakes.0.len(), 2);
        assert!(mistakes.to_string().contains("cannot be read"));
    }
}
