//! Hand-made hellos. They are well-formed unless a test changes them.

/// The fields of a hello.
#[derive(Debug, Clone)]
pub(super) struct Hello {
    pub legacy_version: u16,
    pub session_id: Vec<u8>,
    pub cipher_suites: Vec<u8>,
    pub compression: Vec<u8>,
    /// `None` omits even the length of the extension block, as hellos before TLS 1.2 may.
    pub extensions: Option<Vec<u8>>,
}

impl Default for Hello {
    fn default() -> Self {
        Self {
            legacy_version: 0x0303,
            session_id: vec![7; 32],
            cipher_suites: vec![0x13, 0x01, 0x0a, 0x0a],
            compression: vec![0],
            extensions: Some(Vec::new()),
        }
    }
}

impl Hello {
    /// A hello with these extensions, each given by its type and content.
    pub(super) fn with(extensions: &[(u16, &[u8])]) -> Self {
        let list = extensions.iter().flat_map(|(kind, data)| extension(*kind, data)).collect();
        Self { extensions: Some(list), ..Self::default() }
    }

    /// A hello for `name`.
    pub(super) fn to(name: &str) -> Self {
        Self::with(&[(0, &server_name_list(&[(0, name.as_bytes())]))])
    }

    /// The handshake message with its header.
    pub(super) fn message(&self) -> Vec<u8> {
        let mut body = self.legacy_version.to_be_bytes().to_vec();
        body.extend([0x5a; 32]);
        body.extend(vector8(&self.session_id));
        body.extend(vector16(&self.cipher_suites));
        body.extend(vector8(&self.compression));
        body.extend(self.extensions.iter().flat_map(|list| vector16(list)));
        message(1, &body)
    }

    /// The hello in one record.
    pub(super) fn bytes(&self) -> Vec<u8> {
        record(&self.message())
    }
}

/// A handshake message.
pub(super) fn message(kind: u8, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(body.len()).unwrap().to_be_bytes();
    [&[kind], &length[1..], body].concat()
}

/// One handshake record.
pub(super) fn record(fragment: &[u8]) -> Vec<u8> {
    [&[0x16, 3, 1][..], &vector16(fragment)].concat()
}

/// A message split into records. One ends at each position of `cuts`, in order.
pub(super) fn records(message: &[u8], cuts: impl IntoIterator<Item = usize>) -> Vec<u8> {
    let mut wire = Vec::new();
    let mut at = 0;
    for cut in cuts.into_iter().chain([message.len()]) {
        if cut > at {
            wire.extend(record(&message[at..cut]));
            at = cut;
        }
    }
    wire
}

/// An extension with its type and length.
pub(super) fn extension(kind: u16, data: &[u8]) -> Vec<u8> {
    [&kind.to_be_bytes()[..], &vector16(data)].concat()
}

/// The content of `server_name`: names with their types.
pub(super) fn server_name_list(names: &[(u8, &[u8])]) -> Vec<u8> {
    let list: Vec<u8> =
        names.iter().flat_map(|(kind, name)| [&[*kind][..], &vector16(name)].concat()).collect();
    vector16(&list)
}

/// The content of the ALPN extension.
pub(super) fn alpn_list(names: &[&[u8]]) -> Vec<u8> {
    let list: Vec<u8> = names.iter().flat_map(|name| vector8(name)).collect();
    vector16(&list)
}

/// The content of `supported_versions`.
pub(super) fn version_list(versions: &[u16]) -> Vec<u8> {
    let list: Vec<u8> = versions.iter().flat_map(|version| version.to_be_bytes()).collect();
    vector8(&list)
}

fn vector8(data: &[u8]) -> Vec<u8> {
    [&[u8::try_from(data.len()).unwrap()], data].concat()
}

fn vector16(data: &[u8]) -> Vec<u8> {
    [&u16::try_from(data.len()).unwrap().to_be_bytes()[..], data].concat()
}
