//! Four commands of a TPM 2.0 about a counter in its non-volatile memory, and what it answers (TPM 2.0 Library
//! Specification, parts 2 and 3). Bytes only; whoever sends them is elsewhere.
//!
//! Sessions are passwords, and these are empty: what protects the counter is that it only counts up, not who may do so.

/// Longest answer that is read, in bytes: what a TPM has as its buffer.
pub const ANSWER_BYTES: usize = 4096;
/// Length of the header of an answer: tag, size and code.
pub const HEADER_BYTES: usize = 10;

const NO_SESSIONS: u16 = 0x8001;
const SESSIONS: u16 = 0x8002;
const DEFINE: u32 = 0x12A;
const INCREMENT: u32 = 0x134;
const READ: u32 = 0x14E;
const READ_PUBLIC: u32 = 0x169;
const OWNER: u32 = 0x4000_0001;
const PASSWORD: u32 = 0x4000_0009;
const SHA256: u16 = 0x000B;

/// Attributes of the counter (TPMA_NV): owner and index may write and read, it counts, and a wrong password locks nothing.
pub const ATTRIBUTES: u32 = 0x0206_0016;
/// Kind of an index.
const KIND: u32 = 0xF0;
const KIND_COUNTER: u32 = 0x10;
/// Written and read with the password of the index.
const AUTH_WRITE_READ: u32 = 1 << 2 | 1 << 18;
/// The value is in memory that a loss of power clears; it goes on further up then.
const ORDERLY: u32 = 1 << 26;
const WRITTEN: u32 = 1 << 29;
/// Bytes of a counter.
const COUNTER_BYTES: u16 = 8;

/// What a TPM answered instead.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TpmError {
    /// Not the bytes of an answer to what was asked.
    #[error("its answer of {length} bytes is malformed: {what}")]
    Malformed {
        /// Length of the answer.
        length: usize,
        /// What is wrong.
        what: &'static str,
    },
    /// A code of the TPM.
    #[error("it answered 0x{code:03x} ({})", name(*code))]
    Code {
        /// The response code.
        code: u32,
    },
    /// The index is there and is no counter that can be used.
    #[error(
        "the index has attributes 0x{attributes:08x} and {size} bytes, and is no counter that the agent can use: {what}"
    )]
    NoCounter {
        /// Its attributes.
        attributes: u32,
        /// Bytes of its data.
        size: u16,
        /// What is wrong.
        what: &'static str,
    },
}

impl TpmError {
    /// Whether the TPM has no such index.
    fn is_missing(&self) -> bool {
        // TPM_RC_HANDLE of the first handle.
        matches!(self, Self::Code { code: 0x18B })
    }

    /// Whether the TPM did nothing, and asks to be asked again: it yielded, tests itself, or spares its memory.
    pub fn is_later(&self) -> bool {
        matches!(
            self,
            Self::Code {
                code: 0x908 | 0x90A | 0x920 | 0x922
            }
        )
    }
}

/// The name of a response code, as far as these commands can get it.
fn name(code: u32) -> &'static str {
    let bare = if code & 0x80 != 0 { code & 0xBF } else { code };
    match bare {
        0x082 => "TPM_RC_ATTRIBUTES",
        0x084 => "TPM_RC_VALUE",
        0x085 => "TPM_RC_HIERARCHY: the owner hierarchy is disabled",
        0x08B => "TPM_RC_HANDLE: there is no such index",
        0x08E => "TPM_RC_AUTH_FAIL: its password is not empty",
        0x095 => "TPM_RC_SIZE",
        0x0A2 => "TPM_RC_BAD_AUTH: its password is not empty",
        0x100 => "TPM_RC_INITIALIZE: the firmware has not started it",
        0x101 => "TPM_RC_FAILURE: it is in failure mode",
        0x120 => "TPM_RC_DISABLED",
        0x12F => "TPM_RC_AUTH_UNAVAILABLE",
        0x130 => "TPM_RC_REBOOT",
        0x143 => "TPM_RC_COMMAND_CODE: it does not know the command",
        0x146 => "TPM_RC_NV_RANGE",
        0x148 => "TPM_RC_NV_LOCKED",
        0x149 => "TPM_RC_NV_AUTHORIZATION",
        0x14A => "TPM_RC_NV_UNINITIALIZED",
        0x14B => "TPM_RC_NV_SPACE: its memory is full",
        0x14C => "TPM_RC_NV_DEFINED",
        0x908 => "TPM_RC_YIELDED",
        0x909 => "TPM_RC_CANCELED",
        0x90A => "TPM_RC_TESTING",
        0x920 => "TPM_RC_NV_RATE: it spares its memory",
        0x921 => "TPM_RC_LOCKOUT: too many wrong passwords",
        0x922 => "TPM_RC_RETRY",
        0x923 => "TPM_RC_NV_UNAVAILABLE",
        _ => "no code that the agent knows",
    }
}

fn command(tag: u16, code: u32, body: &[u8]) -> Vec<u8> {
    // Bodies are a few constants long.
    let size = u32::try_from(HEADER_BYTES + body.len()).unwrap_or(u32::MAX);
    let mut bytes = tag.to_be_bytes().to_vec();
    bytes.extend_from_slice(&size.to_be_bytes());
    bytes.extend_from_slice(&code.to_be_bytes());
    bytes.extend_from_slice(body);
    bytes
}

/// A command whose first handle is authorised by an empty password.
fn authorised(code: u32, handles: &[u32], parameters: &[u8]) -> Vec<u8> {
    let mut body: Vec<u8> = handles.iter().flat_map(|handle| handle.to_be_bytes()).collect();
    // Length of what follows; the session, no nonce, no attributes, no password.
    body.extend_from_slice(&9_u32.to_be_bytes());
    body.extend_from_slice(&PASSWORD.to_be_bytes());
    body.extend_from_slice(&[0; 5]);
    body.extend_from_slice(parameters);
    command(SESSIONS, code, &body)
}

/// TPM2_NV_ReadPublic: what the index is.
pub fn read_public(index: u32) -> Vec<u8> {
    command(NO_SESSIONS, READ_PUBLIC, &index.to_be_bytes())
}

/// TPM2_NV_DefineSpace: the index becomes a counter, which has no value yet.
pub fn define(index: u32) -> Vec<u8> {
    let mut public = index.to_be_bytes().to_vec();
    public.extend_from_slice(&SHA256.to_be_bytes());
    public.extend_from_slice(&ATTRIBUTES.to_be_bytes());
    // No policy.
    public.extend_from_slice(&0_u16.to_be_bytes());
    public.extend_from_slice(&COUNTER_BYTES.to_be_bytes());
    // No password; then the length of the public part, which is 14 bytes.
    let mut parameters = vec![0, 0, 0, 14];
    parameters.extend_from_slice(&public);
    authorised(DEFINE, &[OWNER], &parameters)
}

/// TPM2_NV_Increment. The first one gives the counter a value that none of this TPM ever had.
pub fn increment(index: u32) -> Vec<u8> {
    authorised(INCREMENT, &[index, index], &[])
}

/// TPM2_NV_Read: the value of the counter.
pub fn read(index: u32) -> Vec<u8> {
    let mut parameters = COUNTER_BYTES.to_be_bytes().to_vec();
    parameters.extend_from_slice(&0_u16.to_be_bytes());
    authorised(READ, &[index, index], &parameters)
}

/// Takes fields off an answer.
struct Fields<'a> {
    rest: &'a [u8],
    length: usize,
}

impl<'a> Fields<'a> {
    fn malformed(&self, what: &'static str) -> TpmError {
        let length = self.length;
        TpmError::Malformed { length, what }
    }

    fn bytes(&mut self, count: usize) -> Result<&'a [u8], TpmError> {
        let (taken, rest) = self
            .rest
            .split_at_checked(count)
            .ok_or_else(|| self.malformed("it is too short"))?;
        self.rest = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], TpmError> {
        let bytes = self.bytes(N)?;
        bytes.try_into().map_err(|_| self.malformed("it is too short"))
    }

    fn u16(&mut self) -> Result<u16, TpmError> {
        Ok(u16::from_be_bytes(self.array()?))
    }

    fn u32(&mut self) -> Result<u32, TpmError> {
        Ok(u32::from_be_bytes(self.array()?))
    }

    /// Bytes behind their length.
    fn sized(&mut self) -> Result<Self, TpmError> {
        let count = self.u16()?;
        let length = self.length;
        let rest = self.bytes(count.into())?;
        Ok(Self { rest, length })
    }

    fn end(self) -> Result<(), TpmError> {
        if self.rest.is_empty() {
            return Ok(());
        }
        Err(self.malformed("it has more bytes than it says"))
    }
}

/// The length that an answer says to have, from its header.
///
/// # Errors
/// [`TpmError::Malformed`] when it is shorter than its header or longer than [`ANSWER_BYTES`].
pub fn announced(header: &[u8; HEADER_BYTES]) -> Result<usize, TpmError> {
    let mut fields = Fields {
        rest: header,
        length: HEADER_BYTES,
    };
    fields.u16()?;
    let size = usize::try_from(fields.u32()?).unwrap_or(usize::MAX);
    if (HEADER_BYTES..=ANSWER_BYTES).contains(&size) {
        return Ok(size);
    }
    Err(fields.malformed("it announces an impossible length"))
}

/// The parameters of an answer.
fn parameters(answer: &[u8], sessions: bool) -> Result<Fields<'_>, TpmError> {
    let length = answer.len();
    let mut fields = Fields { rest: answer, length };
    let (tag, size, code) = (fields.u16()?, fields.u32()?, fields.u32()?);
    if usize::try_from(size).ok() != Some(length) || length > ANSWER_BYTES {
        return Err(fields.malformed("it has another length than it says"));
    }
    if code != 0 {
        if tag != NO_SESSIONS {
            return Err(fields.malformed("its tag is unknown"));
        }
        fields.end()?;
        return Err(TpmError::Code { code });
    }
    if tag != if sessions { SESSIONS } else { NO_SESSIONS } {
        return Err(fields.malformed("its tag is not that of the command"));
    }
    if !sessions {
        return Ok(fields);
    }
    let count = usize::try_from(fields.u32()?).unwrap_or(usize::MAX);
    let rest = fields.bytes(count)?;
    // The session: no nonce, its attributes, no password.
    fields.sized()?.end()?;
    fields.bytes(1)?;
    fields.sized()?.end()?;
    fields.end()?;
    Ok(Fields { rest, length })
}

/// Reads the answer to [`define`] or [`increment`].
///
/// # Errors
/// [`TpmError`].
pub fn done(answer: &[u8]) -> Result<(), TpmError> {
    parameters(answer, true)?.end()
}

/// Reads the answer to [`read`].
///
/// # Errors
/// [`TpmError`].
pub fn value(answer: &[u8]) -> Result<u64, TpmError> {
    let mut fields = parameters(answer, true)?;
    let mut data = fields.sized()?;
    let value = u64::from_be_bytes(data.array()?);
    data.end()?;
    fields.end()?;
    Ok(value)
}

/// What an index is that was asked about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Index {
    /// There is none.
    Missing,
    /// A counter without a value.
    Unwritten,
    /// A counter with a value.
    Written,
}

/// Reads the answer to [`read_public`].
///
/// # Errors
/// [`TpmError`]; also when the index is something else than a counter that can be relied on.
pub fn public(answer: &[u8], index: u32) -> Result<Index, TpmError> {
    let mut fields = match parameters(answer, false) {
        Err(error) if error.is_missing() => return Ok(Index::Missing),
        other => other?,
    };
    let mut public = fields.sized()?;
    // Its name, a digest.
    fields.sized()?;
    fields.end()?;
    let (found, _hash, attributes) = (public.u32()?, public.u16()?, public.u32()?);
    public.sized()?;
    let size = public.u16()?;
    if found != index {
        return Err(public.malformed("it is about another index"));
    }
    public.end()?;
    let unfit = |what| TpmError::NoCounter { attributes, size, what };
    if attributes & KIND != KIND_COUNTER || size != COUNTER_BYTES {
        return Err(unfit("it was defined for something else"));
    }
    if attributes & AUTH_WRITE_READ != AUTH_WRITE_READ {
        return Err(unfit("it needs authwrite and authread"));
    }
    if attributes & ORDERLY != 0 {
        return Err(unfit(
            "an orderly counter goes on at another value after a loss of power",
        ));
    }
    Ok(if attributes & WRITTEN == 0 {
        Index::Unwritten
    } else {
        Index::Written
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use fwmeta::hex;

    const INDEX: u32 = 0x0150_0010;

    fn bytes(text: &str) -> Vec<u8> {
        hex::decode(&text.replace(' ', "")).unwrap()
    }

    /// As the commands of tpm2-tools, and what swtpm 0.7 answers.
    const PUBLIC: &str = "8001 0000003e 00000000 000e 01500010 000b 02060016 0000 0008 \
        0022 000bd8a8f32b85d10229ae37212628f5b4aab2d0292b97ea2193ee82fcfd411b0d3c";
    const VALUE: &str = "8002 0000001d 00000000 0000000a 0008 0000000000000002 0000 01 0000";
    const DONE: &str = "8002 00000013 00000000 00000000 0000 01 0000";

    #[test]
    fn commands() {
        assert_eq!(read_public(INDEX), bytes("8001 0000000e 00000169 01500010"));
        assert_eq!(
            define(INDEX),
            bytes(
                "8002 0000002d 0000012a 40000001 00000009 40000009 0000 00 0000 0000 000e \
                 01500010 000b 02060016 0000 0008"
            )
        );
        assert_eq!(
            increment(INDEX),
            bytes("8002 0000001f 00000134 01500010 01500010 00000009 40000009 0000 00 0000")
        );
        assert_eq!(
            read(INDEX),
            bytes("8002 00000023 0000014e 01500010 01500010 00000009 40000009 0000 00 0000 0008 0000")
        );
    }

    #[test]
    fn answers() {
        assert_eq!(value(&bytes(VALUE)), Ok(2));
        assert_eq!(done(&bytes(DONE)), Ok(()));
        assert_eq!(public(&bytes(PUBLIC), INDEX), Ok(Index::Unwritten));
        let written = PUBLIC.replace("02060016", "22060016");
        assert_eq!(public(&bytes(&written), INDEX), Ok(Index::Written));
        assert_eq!(public(&bytes("8001 0000000a 0000018b"), INDEX), Ok(Index::Missing));
    }

    #[test]
    fn no_answer_that_is_cut_or_longer_or_of_another_command_is_taken() {
        for text in [VALUE, DONE, PUBLIC] {
            let whole = bytes(text);
            let read: fn(&[u8]) -> bool = match text {
                VALUE => |answer| value(answer).is_ok(),
                DONE => |answer| done(answer).is_ok(),
                _ => |answer| public(answer, INDEX).is_ok(),
            };
            assert!(read(&whole));
            for length in 0..whole.len() {
                // Also when its header says that this is all.
                let mut cut = whole[..length].to_vec();
                assert!(!read(&cut), "{text}: {length}");
                if let Some(size) = cut.get_mut(2..6) {
                    size.copy_from_slice(&u32::try_from(length).unwrap().to_be_bytes());
                    assert!(!read(&cut), "{text}: {length}");
                }
            }
            let mut longer = whole.clone();
            longer.push(0);
            assert!(!read(&longer));
            let size = u32::try_from(longer.len()).unwrap();
            longer[2..6].copy_from_slice(&size.to_be_bytes());
            assert!(!read(&longer));
        }
        assert!(value(&bytes(DONE)).is_err() && done(&bytes(VALUE)).is_err());
        assert!(public(&bytes(PUBLIC), INDEX + 1).is_err());
    }

    #[test]
    fn an_index_that_is_no_reliable_counter_is_refused() {
        for (attributes, says) in [
            ("02060006", "something else"),
            ("02020012", "authwrite"),
            ("06060016", "orderly"),
        ] {
            let error = public(&bytes(&PUBLIC.replace("02060016", attributes)), INDEX).unwrap_err();
            assert!(error.to_string().contains(says), "{error}");
        }
        let error = public(&bytes(&PUBLIC.replace("0000 0008 ", "0000 0010 ")), INDEX).unwrap_err();
        assert!(matches!(error, TpmError::NoCounter { size: 16, .. }), "{error}");
    }

    #[test]
    fn codes_have_names() {
        for (code, says, later) in [
            ("0000014a", "0x14a (TPM_RC_NV_UNINITIALIZED)", false),
            ("00000922", "0x922 (TPM_RC_RETRY)", true),
            ("00000921", "TPM_RC_LOCKOUT", false),
            ("000009a2", "TPM_RC_BAD_AUTH", false),
            ("00000920", "TPM_RC_NV_RATE", true),
            ("0000018b", "TPM_RC_HANDLE", false),
            ("0000ffff", "0xffff (no code", false),
        ] {
            let error = value(&bytes(&format!("8001 0000000a {code}"))).unwrap_err();
            assert!(error.to_string().contains(says), "{error}");
            assert_eq!(error.is_later(), later, "{error}");
        }
    }

    #[test]
    fn what_a_header_announces_is_bounded() {
        let header = |size: u32| -> [u8; 10] {
            let mut header = [0x80, 2, 0, 0, 0, 0, 0, 0, 0, 0];
            header[2..6].copy_from_slice(&size.to_be_bytes());
            header
        };
        assert_eq!(announced(&header(10)), Ok(10));
        assert_eq!(announced(&header(4096)), Ok(4096));
        assert!(announced(&header(9)).is_err() && announced(&header(4097)).is_err());
        assert!(announced(&header(u32::MAX)).is_err());
    }
}
