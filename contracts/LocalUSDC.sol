// SPDX-License-Identifier: MIT
pragma solidity 0.8.37;

import {ERC20} from "@openzeppelin/contracts/token/ERC20/ERC20.sol";
import {ERC3009} from "@openzeppelin/contracts/token/ERC20/extensions/draft-ERC3009.sol";
import {EIP712} from "@openzeppelin/contracts/utils/cryptography/EIP712.sol";
import {SignatureChecker} from "@openzeppelin/contracts/utils/cryptography/SignatureChecker.sol";

/// @title The devnet's stand-in for Circle's USDC (FiatTokenV2_2).
/// @notice For tests only: anyone may mint, pause and blacklist. What a payment meets is as in Circle's token:
/// the domain, both forms of every authorization, ERC-1271 for payers with code, the logs and most reasons.
/// @dev Nothing is read from storage that a constructor wrote: the code works where it is copied to.
contract LocalUSDC is ERC3009 {
    bool public paused;
    mapping(address account => bool) public isBlacklisted;

    constructor() ERC20("", "") EIP712("USD Coin", "2") {}

    // A devnet's levers, for anyone.

    function mint(address to, uint256 value) external {
        _mint(to, value);
    }

    function pause() external {
        paused = true;
    }

    function unpause() external {
        paused = false;
    }

    function blacklist(address account) external {
        isBlacklisted[account] = true;
    }

    function unBlacklist(address account) external {
        isBlacklisted[account] = false;
    }

    // The token's face.

    function name() public pure override returns (string memory) {
        return "USD Coin";
    }

    function symbol() public pure override returns (string memory) {
        return "USDC";
    }

    function decimals() public pure override returns (uint8) {
        return 6;
    }

    function version() external pure returns (string memory) {
        return "2";
    }

    // solhint-disable-next-line func-name-mixedcase
    function DOMAIN_SEPARATOR() external view returns (bytes32) {
        return _domainSeparatorV4();
    }

    // Plain transfers.

    function transfer(address to, uint256 value) public override returns (bool) {
        _requireOpen(_msgSender(), to);
        return super.transfer(to, value);
    }

    function transferFrom(address from, address to, uint256 value) public override returns (bool) {
        _requireOpen(from, to);
        _requireNotBlacklisted(_msgSender());
        return super.transferFrom(from, to, value);
    }

    // Authorizations: each in the form (v, r, s) and in the form that takes the signature's bytes.

    function transferWithAuthorization(
        address from,
        address to,
        uint256 value,
        uint256 validAfter,
        uint256 validBefore,
        bytes32 nonce,
        uint8 v,
        bytes32 r,
        bytes32 s
    ) public override {
        transferWithAuthorization(from, to, value, validAfter, validBefore, nonce, abi.encodePacked(r, s, v));
    }

    function transferWithAuthorization(
        address from,
        address to,
        uint256 value,
        uint256 validAfter,
        uint256 validBefore,
        bytes32 nonce,
        bytes memory signature
    ) public {
        _move(TRANSFER_WITH_AUTHORIZATION_TYPEHASH, from, to, value, validAfter, validBefore, nonce, signature);
    }

    function receiveWithAuthorization(
        address from,
        address to,
        uint256 value,
        uint256 validAfter,
        uint256 validBefore,
        bytes32 nonce,
        uint8 v,
        bytes32 r,
        bytes32 s
    ) public override {
        receiveWithAuthorization(from, to, value, validAfter, validBefore, nonce, abi.encodePacked(r, s, v));
    }

    function receiveWithAuthorization(
        address from,
        address to,
        uint256 value,
        uint256 validAfter,
        uint256 validBefore,
        bytes32 nonce,
        bytes memory signature
    ) public {
        require(to == _msgSender(), "FiatTokenV2: caller must be the payee");
        _move(RECEIVE_WITH_AUTHORIZATION_TYPEHASH, from, to, value, validAfter, validBefore, nonce, signature);
    }

    function cancelAuthorization(address authorizer, bytes32 nonce, uint8 v, bytes32 r, bytes32 s) public override {
        cancelAuthorization(authorizer, nonce, abi.encodePacked(r, s, v));
    }

    function cancelAuthorization(address authorizer, bytes32 nonce, bytes memory signature) public {
        _requireNotPaused();
        _requireUnused(authorizer, nonce);
        _requireSigned(authorizer, keccak256(abi.encode(CANCEL_AUTHORIZATION_TYPEHASH, authorizer, nonce)), signature);
        _cancelAuthorization(authorizer, nonce);
    }

    function _move(
        bytes32 typehash,
        address from,
        address to,
        uint256 value,
        uint256 validAfter,
        uint256 validBefore,
        bytes32 nonce,
        bytes memory signature
    ) private {
        _requireOpen(from, to);
        _checkValidity(validAfter, validBefore);
        _requireUnused(from, nonce);
        bytes32 terms = keccak256(abi.encode(typehash, from, to, value, validAfter, validBefore, nonce));
        _requireSigned(from, terms, signature);
        _transferWithAuthorization(from, to, value, validAfter, validBefore, nonce);
    }

    /// @dev Plain timestamps: OpenZeppelin's second clock, block numbers, is not Circle's.
    function _checkValidity(uint256 validAfter, uint256 validBefore) internal view override {
        require(block.timestamp > validAfter, "FiatTokenV2: authorization is not yet valid");
        require(block.timestamp < validBefore, "FiatTokenV2: authorization is expired");
    }

    function _update(address from, address to, uint256 value) internal override {
        require(from == address(0) || value <= balanceOf(from), "ERC20: transfer amount exceeds balance");
        super._update(from, to, value);
    }

    /// @dev An account with code is asked, whatever the form; a high s is refused.
    function _requireSigned(address signer, bytes32 terms, bytes memory signature) private view {
        bool signed = SignatureChecker.isValidSignatureNow(signer, _hashTypedDataV4(terms), signature);
        require(signed, "FiatTokenV2: invalid signature");
    }

    function _requireUnused(address authorizer, bytes32 nonce) private view {
        require(!authorizationState(authorizer, nonce), "FiatTokenV2: authorization is used or canceled");
    }

    function _requireOpen(address from, address to) private view {
        _requireNotPaused();
        _requireNotBlacklisted(from);
        _requireNotBlacklisted(to);
    }

    function _requireNotPaused() private view {
        require(!paused, "Pausable: paused");
    }

    function _requireNotBlacklisted(address account) private view {
        require(!isBlacklisted[account], "Blacklistable: account is blacklisted");
    }
}
