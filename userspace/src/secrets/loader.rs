//! Finds the secrets that the model names: in Secret objects of the files, in the secrets directory, and by path.

use std::{
    collections::{BTreeSet, HashMap},
    fmt,
    path::{Path, PathBuf},
    sync::Arc,
};

use rustls::{
    RootCertStore,
    pki_types::{CertificateDer, CertificateRevocationListDer},
};
use snisplice_config::{
    Severity, Source,
    model::{
        Model,
        secret::Secret,
        termination::{AuthoritySource, CertificateSource, SecretName},
    },
    secret::secrets_of,
};
use zeroize::{Zeroize as _, Zeroizing};

use super::{
    certificate::{self, Certificate, LoadKey, Material, Part},
    error::{Fault, SecretError, SecretWarning},
    files::{self, Watched},
    pem, places, revocation,
};

/// Keys of a Secret for a certificate and its key: those of `kubernetes.io/tls`, and those of Istio's generic form.
const PAIRS: [(&str, &str); 2] = [("tls.crt", "tls.key"), ("cert", "key")];
/// Keys of a Secret for certificates of authorities.
const AUTHORITIES: [&str; 2] = ["ca.crt", "cacert"];
/// The key of a Secret for the certificate revocation lists of its authorities, as in Istio.
const REVOCATION_LISTS: &str = "ca.crl";
/// The key of a Secret for an OCSP response.
const STAPLE: &str = "tls.ocsp-staple";

/// The certificates of authorities.
#[derive(Clone)]
pub struct Authorities {
    /// The library's form of the certificates.
    pub roots: Arc<RootCertStore>,
    /// The certificates, to compare two versions.
    pub certificates: Vec<CertificateDer<'static>>,
    /// The revocation lists (RFC 5280 section 5). Without a list, no certificate is revoked. With lists, each
    /// certificate of a chain must be within the scope of one list.
    pub revocation_lists: Vec<CertificateRevocationListDer<'static>>,
}

impl fmt::Debug for Authorities {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} authorities", self.certificates.len())
    }
}

/// Loads the secrets of one configuration at one time. Each source is read once.
pub struct Loader<'m> {
    model: &'m Model,
    directory: Option<PathBuf>,
    /// The Secrets of the directory's YAML files, once they are read.
    objects: Option<Vec<Secret>>,
    load_key: LoadKey,
    /// Seconds since 1970.
    now: i64,
    read: BTreeSet<PathBuf>,
    warnings: Vec<SecretWarning>,
    certificates: HashMap<CertificateSource, Arc<Certificate>>,
    authorities: HashMap<(AuthoritySource, Option<String>), Authorities>,
}

impl<'m> Loader<'m> {
    /// For the sources of this model, at this time in seconds since 1970.
    #[must_use]
    pub fn new(model: &'m Model, load_key: LoadKey, now: i64) -> Self {
        Self {
            model,
            directory: model.runtime.secrets.clone(),
            objects: None,
            load_key,
            now,
            read: BTreeSet::new(),
            warnings: Vec::new(),
            certificates: HashMap::new(),
            authorities: HashMap::new(),
        }
    }

    /// The paths that were read or tried, and the warnings.
    #[must_use]
    pub fn finish(self) -> (Watched, Vec<SecretWarning>) {
        (Watched::of(self.read), self.warnings)
    }

    /// Loads a certificate with its key.
    pub fn certificate(&mut self, source: &CertificateSource) -> Result<Arc<Certificate>, SecretError> {
        if let Some(known) = self.certificates.get(source) {
            return Ok(known.clone());
        }
        let material = match source {
            CertificateSource::Files { certificate, key } => {
                let staple = places::staple(certificate);
                self.files(Path::new(certificate), Path::new(key), &staple)?
            }
            CertificateSource::Secret(name) => self.secret(name)?,
        };
        let found = Arc::new(Certificate::new(material, self.load_key, self.now)?);
        self.warnings.extend(found.warnings.iter().cloned().chain(found.expiry(self.now)));
        self.certificates.insert(source.clone(), found.clone());
        Ok(found)
    }

    /// Loads the certificates of authorities and the revocation lists: those of the given file, or else those of the
    /// Secret.
    pub fn authorities(
        &mut self,
        source: &AuthoritySource,
        crl: Option<&str>,
    ) -> Result<Authorities, SecretError> {
        let key = (source.clone(), crl.map(str::to_owned));
        if let Some(known) = self.authorities.get(&key) {
            return Ok(known.clone());
        }
        let (mut found, lists) = match source {
            AuthoritySource::File(path) => (trusted(&self.file(Path::new(path))?)?, None),
            AuthoritySource::Secret(name) => {
                let (part, lists) = self.authority(name)?;
                (trusted(&part)?, lists)
            }
            AuthoritySource::System => (system()?, None),
        };
        let lists = match crl {
            Some(path) => Some(self.file(Path::new(path))?),
            None => lists,
        };
        if let Some(part) = lists {
            let fault = |fault| SecretError::new(&part.place, fault);
            found.revocation_lists = pem::revocation_lists(&part.bytes).map_err(fault)?;
            revocation::check(&found.revocation_lists, self.now).map_err(fault)?;
        }
        self.authorities.insert(key, found.clone());
        Ok(found)
    }

    /// Reads the files of a certificate, its key, and an optional OCSP response.
    fn files(&mut self, certificate: &Path, key: &Path, staple: &Path) -> Result<Material, SecretError> {
        let certificate = self.file(certificate)?;
        let (key, mode) = self.file_with_mode(key)?;
        self.heed_mode(&key.place, mode);
        self.read.insert(staple.to_owned());
        let staple = if files::exists(staple) { Some(self.file(staple)?) } else { None };
        Ok(Material { certificate, key, staple })
    }

    fn file(&mut self, path: &Path) -> Result<Part, SecretError> {
        self.file_with_mode(path).map(|(part, _)| part)
    }

    fn file_with_mode(&mut self, path: &Path) -> Result<(Part, u32), SecretError> {
        self.read.insert(path.to_owned());
        let place = path.display().to_string();
        match files::read(path) {
            Ok(content) => Ok((Part { place, bytes: content.bytes }, content.mode)),
            Err(fault) => Err(SecretError::new(place, fault)),
        }
    }

    fn heed_mode(&mut self, place: &str, mode: u32) {
        let warning = SecretWarning::Readable { place: place.to_owned(), mode };
        if mode & 0o007 != 0 && !self.warnings.contains(&warning) {
            self.warnings.push(warning);
        }
    }

    /// Reads a certificate by the name of its Secret.
    fn secret(&mut self, name: &SecretName) -> Result<Material, SecretError> {
        if let Some(secret) = self.object(name)? {
            return of_secret(secret);
        }
        if let Some(directory) = self.directory() {
            for places::Pair { certificate, key, staple } in places::certificate(&directory, checked(name)?) {
                self.read.extend([certificate.clone(), key.clone()]);
                // One file without the other is an error at this place.
                if files::exists(&certificate) || files::exists(&key) {
                    return self.files(&certificate, &key, &staple);
                }
            }
        }
        let tried = self.tried(|directory| {
            places::certificate(directory, &name.name)
                .map(|pair| pair.certificate.display().to_string())
                .to_vec()
        });
        Err(self.not_found(name, tried))
    }

    /// Reads certificates of authorities and revocation lists by the name of a Secret. The name with the suffix
    /// `-cacert` comes first, as in Istio.
    fn authority(&mut self, name: &SecretName) -> Result<(Part, Option<Part>), SecretError> {
        let own = SecretName { name: format!("{}-cacert", name.name), ..name.clone() };
        for candidate in [&own, name] {
            let Some(secret) = self.object(candidate)? else { continue };
            if let Some(part) = AUTHORITIES.iter().find_map(|key| entry(secret, key)) {
                let lists = entry(secret, REVOCATION_LISTS).filter(|part| !part.bytes.is_empty());
                return Ok((part, lists));
            }
            if candidate == &own {
                return Err(no_entry(secret, "ca.crt or cacert"));
            }
        }
        if let Some(directory) = self.directory() {
            for places::Issuers { authorities, revocation_lists } in
                places::authorities(&directory, checked(name)?)
            {
                self.read.insert(authorities.clone());
                if files::exists(&authorities) {
                    self.read.insert(revocation_lists.clone());
                    let lists = files::exists(&revocation_lists).then(|| self.file(&revocation_lists));
                    return Ok((self.file(&authorities)?, lists.transpose()?));
                }
            }
        }
        if let Some(secret) = self.object(name)? {
            return Err(no_entry(
                secret,
                "ca.crt or cacert, and there is no Secret with -cacert behind the name",
            ));
        }
        let tried = self.tried(|directory| {
            places::authorities(directory, &name.name)
                .map(|issuers| issuers.authorities.display().to_string())
                .to_vec()
        });
        Err(self.not_found(&own, tried))
    }

    /// Finds a Secret object in the configuration's files, or else in the directory's.
    fn object(&mut self, name: &SecretName) -> Result<Option<&Secret>, SecretError> {
        self.read_objects()?;
        if let Some(found) = find(&self.model.secrets, name)? {
            return Ok(Some(found));
        }
        find(self.objects.as_deref().unwrap_or_default(), name)
    }

    /// Reads the Secrets of the directory's YAML files, once.
    fn read_objects(&mut self) -> Result<(), SecretError> {
        if self.objects.is_some() {
            return Ok(());
        }
        let mut all = Vec::new();
        if let Some(path) = self.directory.clone() {
            let of_path = |fault| SecretError::new(path.display().to_string(), fault);
            self.read.insert(path.clone());
            for path in files::documents(&path).map_err(of_path)? {
                let (part, mode) = self.file_with_mode(&path)?;
                let Ok(text) = std::str::from_utf8(&part.bytes) else {
                    return Err(SecretError::new(
                        part.place,
                        Fault::Yaml("is not UTF-8; save it as UTF-8".to_owned()),
                    ));
                };
                let mut source = Source { name: part.place.clone(), text: text.to_owned() };
                let (secrets, found) = secrets_of(&source);
                source.text.zeroize();
                if let Some(error) = found.iter().find(|found| found.severity == Severity::Error) {
                    return Err(SecretError::new(part.place, Fault::Yaml(error.to_string())));
                }
                if !secrets.is_empty() {
                    self.heed_mode(&part.place, mode);
                }
                all.extend(secrets);
            }
        }
        self.objects = Some(all);
        Ok(())
    }

    /// The secrets directory, if it is one.
    fn directory(&self) -> Option<PathBuf> {
        self.directory.clone().filter(|path| path.is_dir())
    }

    fn tried(&self, paths: impl Fn(&Path) -> Vec<String>) -> String {
        let mut tried = vec!["the Secret objects of the configuration".to_owned()];
        if let Some(directory) = &self.directory {
            if directory.is_dir() {
                tried.push(format!("{}/*.yaml", directory.display()));
                tried.extend(paths(directory));
            } else {
                tried.push(directory.display().to_string());
            }
        }
        tried.join(", ")
    }

    fn not_found(&self, name: &SecretName, tried: String) -> SecretError {
        let remedy = if self.directory.is_some() {
            "put it there"
        } else {
            "name a directory that has it with --secrets or the setting secrets"
        };
        SecretError::new(shown(name), Fault::NotFound { tried, remedy })
    }
}

/// The Secret in the requested namespace, or else the only one with the name.
fn find<'s>(all: &'s [Secret], wanted: &SecretName) -> Result<Option<&'s Secret>, SecretError> {
    let named: Vec<&Secret> = all.iter().filter(|secret| secret.name.name == wanted.name).collect();
    if let Some(own) = named.iter().find(|secret| secret.name.namespace == wanted.namespace) {
        return Ok(Some(own));
    }
    match named.as_slice() {
        [] => Ok(None),
        [only] => Ok(Some(only)),
        several => {
            let namespaces: Vec<&str> = several.iter().map(|secret| &*secret.name.namespace).collect();
            Err(SecretError::new(shown(wanted), Fault::Ambiguous(namespaces.join(", "))))
        }
    }
}

fn of_secret(secret: &Secret) -> Result<Material, SecretError> {
    for (certificate, key) in PAIRS {
        if let Some(certificate) = entry(secret, certificate) {
            let Some(key) = entry(secret, key) else { return Err(no_entry(secret, "tls.key (or key)")) };
            let staple = entry(secret, STAPLE).filter(|part| !part.bytes.is_empty());
            return Ok(Material { certificate, key, staple });
        }
    }
    Err(no_entry(secret, "tls.crt (or cert)"))
}

fn entry(secret: &Secret, key: &str) -> Option<Part> {
    let bytes = secret.get(key)?;
    let place = format!("{}: {} {key}", secret.origin, shown(&secret.name));
    Some(Part { place, bytes: Zeroizing::new(bytes.to_vec()) })
}

fn no_entry(secret: &Secret, wanted: &'static str) -> SecretError {
    let keys: Vec<&str> = secret.entries.iter().map(|(key, _)| key.as_str()).collect();
    let found = if keys.is_empty() { "no data".to_owned() } else { keys.join(", ") };
    SecretError::new(format!("{}: {}", secret.origin, shown(&secret.name)), Fault::NoEntry { wanted, found })
}

fn shown(SecretName { namespace, name }: &SecretName) -> String {
    if namespace.is_empty() { format!("Secret {name}") } else { format!("Secret {namespace}/{name}") }
}

fn checked(name: &SecretName) -> Result<&str, SecretError> {
    if places::is_name(&name.name) {
        Ok(&name.name)
    } else {
        Err(SecretError::new(shown(name), Fault::BadName))
    }
}

/// Parses the certificates of a file or an entry as authorities.
fn trusted(part: &Part) -> Result<Authorities, SecretError> {
    let fault = |fault| SecretError::new(&part.place, fault);
    let certificates = pem::certificates(&part.bytes).map_err(fault)?;
    certificate::parse(&certificates).map_err(fault)?;
    let mut roots = RootCertStore::empty();
    for (at, certificate) in certificates.iter().enumerate() {
        let bad = |error: rustls::Error| Fault::BadAuthority { number: at + 1, why: error.to_string() };
        roots.add(certificate.clone()).map_err(|error| fault(bad(error)))?;
    }
    Ok(Authorities { roots: Arc::new(roots), certificates, revocation_lists: Vec::new() })
}

/// The system's authorities. Invalid certificates are skipped.
fn system() -> Result<Authorities, SecretError> {
    let found = rustls_native_certs::load_native_certs();
    let mut roots = RootCertStore::empty();
    let (good, _) = roots.add_parsable_certificates(found.certs.iter().cloned());
    if good == 0 {
        let why = found.errors.first().map_or_else(|| "there is none".to_owned(), ToString::to_string);
        return Err(SecretError::new("the system's authorities", Fault::NoSystemStore(why)));
    }
    Ok(Authorities { roots: Arc::new(roots), certificates: found.certs, revocation_lists: Vec::new() })
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt as _};

    use super::*;
    use crate::secrets::certificate::tests::{Ca, NOW, load_key};

    fn name(name: &str) -> SecretName {
        SecretName { namespace: "here".to_owned(), name: name.to_owned() }
    }

    struct Place {
        directory: tempfile::TempDir,
        ca: Ca,
    }

    impl Place {
        fn new() -> Self {
            Self { directory: tempfile::tempdir().unwrap(), ca: Ca::new("CA") }
        }

        fn write(&self, path: &str, text: &str) {
            let path = self.directory.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, text).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        }

        fn issue(&self, certificate: &str, key: &str, server: &str) {
            let (leaf, private) = self.ca.issue(&[server], (2027, 1));
            if certificate == key {
                return self.write(key, &(private + &leaf));
            }
            self.write(certificate, &leaf);
            self.write(key, &private);
        }

        fn model(&self) -> Model {
            let mut model = Model::default();
            model.runtime.secrets = Some(self.directory.path().to_owned());
            model
        }
    }

    #[test]
    fn every_form_of_the_directory_is_found() {
        let place = Place::new();
        place.issue("mounted/tls.crt", "mounted/tls.key", "mounted.test");
        place.issue("certbot/fullchain.pem", "certbot/privkey.pem", "certbot.test");
        place.issue("pair.crt", "pair.key", "pair.test");
        place.issue("one.pem", "one.pem", "one.test");
        let (leaf, key) = place.ca.issue(&["yaml.test"], (2027, 1));
        let indented = |text: &str| text.replace('\n', "\n    ");
        place.write(
            "secrets.yaml",
            &format!(
                "kind: Secret\nmetadata: {{name: yaml}}\nstringData:\n  cert: |\n    {}\n  key: |\n    {}\n  cacert: |\n    {}\n",
                indented(&leaf),
                indented(&key),
                indented(&place.ca.pem()),
            ),
        );
        place.write("pair-cacert.crt", &place.ca.pem());
        let model = place.model();
        let mut loader = Loader::new(&model, load_key, NOW);
        for secret in ["mounted", "certbot", "pair", "one", "yaml"] {
            let found = loader.certificate(&CertificateSource::Secret(name(secret))).unwrap();
            assert_eq!(found.names, [format!("{secret}.test")]);
        }
        for secret in ["pair", "yaml"] {
            let found = loader.authorities(&AuthoritySource::Secret(name(secret)), None).unwrap();
            assert_eq!(found.certificates.len(), 1);
        }
        let (watched, warnings) = loader.finish();
        assert_eq!(warnings, []);
        place.write("mounted/tls.crt", "");
        assert_ne!(watched.again(), watched);
    }

    #[test]
    fn what_is_missing_names_every_place_that_was_tried() {
        let place = Place::new();
        let model = place.model();
        let mut loader = Loader::new(&model, load_key, NOW);
        let missing = CertificateSource::Secret(name("web"));
        let error = loader.certificate(&missing).unwrap_err().to_string();
        for tried in ["objects", "/*.yaml", "/web/tls.crt", "/web/fullchain.pem", "/web.crt", "/web.pem"] {
            assert!(error.contains(tried), "{tried}: {error}");
        }
        assert!(error.starts_with("Secret here/web: "), "{error}");
        let error = loader.authorities(&AuthoritySource::Secret(name("web")), None).unwrap_err().to_string();
        assert!(error.contains("/web-cacert.crt") && error.contains("/web/ca.crt"), "{error}");
        // A file that appears there later is detected.
        let (watched, _) = loader.finish();
        place.issue("web.crt", "web.key", "web.test");
        assert_ne!(watched.again(), watched);
        let without = Model::default();
        let mut loader = Loader::new(&without, load_key, NOW);
        assert!(loader.certificate(&missing).unwrap_err().to_string().contains("--secrets"));
    }

    #[test]
    fn a_key_that_others_can_read_is_warned_of_with_its_mode() {
        let place = Place::new();
        place.issue("web.crt", "web.key", "web.test");
        let key = place.directory.path().join("web.key");
        fs::set_permissions(&key, fs::Permissions::from_mode(0o644)).unwrap();
        let model = place.model();
        let mut loader = Loader::new(&model, load_key, NOW);
        loader.certificate(&CertificateSource::Secret(name("web"))).unwrap();
        let (_, warnings) = loader.finish();
        let text = warnings.iter().map(ToString::to_string).collect::<String>();
        assert!(text.contains("web.key") && text.contains("0644") && text.contains("chmod"), "{text}");
    }

    #[test]
    fn half_of_a_pair_and_a_bad_name_are_errors() {
        let place = Place::new();
        place.write("web.crt", &place.ca.pem());
        let model = place.model();
        let mut loader = Loader::new(&model, load_key, NOW);
        let error = loader.certificate(&CertificateSource::Secret(name("web"))).unwrap_err().to_string();
        assert!(error.contains("web.key: cannot be read"), "{error}");
        let error = loader.certificate(&CertificateSource::Secret(name("../web"))).unwrap_err().to_string();
        assert!(error.contains("no name"), "{error}");
    }
}
