//! Seeds as people write them.

/// A number is a number; what is none, or too long for one, is read as a commit hash, of which the first 16 hexadecimal
/// digits count.
///
/// # Errors
/// It is neither; the text says so.
pub fn parse_seed(text: &str) -> Result<u64, String> {
    if let Ok(seed) = text.parse() {
        return Ok(seed);
    }
    let digits = text.strip_prefix("0x").unwrap_or(text);
    let is_hash =
        !digits.is_empty() && digits.len() <= 64 && digits.bytes().all(|one| one.is_ascii_hexdigit());
    if !is_hash {
        return Err("neither a number nor a commit hash".to_string());
    }
    u64::from_str_radix(&digits[..digits.len().min(16)], 16).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::parse_seed;

    #[test]
    fn a_seed_is_a_number_or_a_hash() {
        assert_eq!(parse_seed("26"), Ok(26));
        assert_eq!(parse_seed("18446744073709551615"), Ok(u64::MAX));
        assert_eq!(parse_seed("0x1a"), Ok(26));
        assert_eq!(
            parse_seed("91b2889657131c2e67e8c042d2e5f03fc24c9c33"),
            Ok(0x91b2_8896_5713_1c2e)
        );
        assert_eq!(parse_seed("91b2889"), Ok(0x091b_2889));
        // A hash of nothing but decimal digits is too long for a number.
        assert_eq!(
            parse_seed("1234567890123456789012345678901234567890"),
            Ok(0x1234_5678_9012_3456)
        );
        for text in ["", "0x", "-1", "main", "1.5", "91b2889 "] {
            assert!(parse_seed(text).is_err(), "{text:?}");
        }
    }
}
