// SPDX-License-Identifier: MIT
pragma solidity 0.8.37;

import {LocalUSDC} from "../LocalUSDC.sol";
import {Test, Vm} from "./Test.sol";
import {BombWallet, FickleWallet, GasBurner, LyingWallet, Wallet1271} from "./Wallets.sol";

/// @dev All of it on a copy of the code at the address that USDC has on Base, as the devnet has it.
contract LocalUSDCTest is Test {
    struct Terms {
        address from;
        address to;
        uint256 value;
        uint256 validAfter;
        uint256 validBefore;
        bytes32 nonce;
    }

    string private constant TERMS =
        "address from,address to,uint256 value,uint256 validAfter,uint256 validBefore,bytes32 nonce";
    string private constant TYPES = "address,address,uint256,uint256,uint256,bytes32";
    string private constant TRANSFER = "TransferWithAuthorization";
    string private constant RECEIVE = "ReceiveWithAuthorization";
    string private constant BAD_SIGNATURE = "FiatTokenV2: invalid signature";
    string private constant USED = "FiatTokenV2: authorization is used or canceled";
    uint256 private constant ORDER = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141;
    uint256 private constant KEY = 0xB0B;
    uint256 private constant NOW = 1_700_000_000;

    LocalUSDC private token = LocalUSDC(0x833589fCD6eDb6E08f4c7C32D4f71b54bdA02913);
    LocalUSDC private original;
    address private payer = VM.addr(KEY);
    address private shop = address(0x5109);

    function setUp() external {
        original = new LocalUSDC();
        VM.etch(address(token), address(original).code);
        VM.chainId(8453);
        VM.warp(NOW);
        token.mint(payer, 100e6);
    }

    function test_face() external view {
        same(bytes(token.name()), "USD Coin");
        same(bytes(token.symbol()), "USDC");
        same(bytes(token.version()), "2");
        same(token.decimals(), 6);
        same(token.totalSupply(), 100e6);
    }

    function test_domainIsThatOfTheAddressAndChain() external {
        _sameDomain(token);
        _sameDomain(original);
        VM.chainId(31337);
        _sameDomain(token);
        _sameDomain(original);
        require(token.DOMAIN_SEPARATOR() != original.DOMAIN_SEPARATOR(), "two tokens, one domain");
    }

    function test_bothFormsFromAKey() external {
        _paidInBothForms(payer);
        _received(payer);
    }

    function test_bothFormsFromAWalletWithCode() external {
        address wallet = address(new Wallet1271(payer));
        token.mint(wallet, 100e6);
        _paidInBothForms(wallet);
        _received(wallet);
    }

    function test_aWalletWithCodeDecidesAlone() external {
        _refusedInBothForms(_terms(address(new LyingWallet()), "1"), BAD_SIGNATURE);
        _refusedInBothForms(_terms(address(new GasBurner()), "1"), BAD_SIGNATURE);
        _refusedInBothForms(_terms(address(new Wallet1271(shop)), "1"), BAD_SIGNATURE);
        FickleWallet fickle = new FickleWallet();
        token.mint(address(fickle), 100e6);
        _refusedInBothForms(_terms(address(fickle), "1"), BAD_SIGNATURE);
        fickle.set(true);
        _paidInBothForms(address(fickle));
        BombWallet bomb = new BombWallet();
        token.mint(address(bomb), 100e6);
        _paidInBothForms(address(bomb));
        // A key whose account has got code since: its signature alone is not enough any more.
        VM.etch(payer, address(new LyingWallet()).code);
        _refusedInBothForms(_terms(payer, "1"), BAD_SIGNATURE);
    }

    function test_usedOnce() external {
        Terms memory terms = _terms(payer, "1");
        _done(_vrs(TRANSFER, terms, _sign(TRANSFER, terms)));
        require(token.authorizationState(payer, "1"), "not used");
        _refusedInBothForms(terms, USED);
        _refused(_cancel(payer, "1", _sign(_cancelHash(payer, "1"))), USED);
        terms.to = address(0xbad);
        _refusedInBothForms(terms, USED);
        same(token.balanceOf(shop), 1e6);
    }

    function test_cancelledInBothForms() external {
        _cancelledInBothForms(payer);
        _cancelledInBothForms(address(new Wallet1271(payer)));
        bytes memory signature = _sign(_cancelHash(shop, "1"));
        _refused(_cancel(shop, "1", signature), BAD_SIGNATURE);
        _refused(_cancelVrs(shop, "1", signature), BAD_SIGNATURE);
    }

    function test_times() external {
        Terms memory terms = _terms(payer, "1");
        (terms.validAfter, terms.validBefore) = (NOW, NOW + 10);
        _refusedInBothForms(terms, "FiatTokenV2: authorization is not yet valid");
        (terms.validAfter, terms.validBefore) = (NOW - 10, NOW);
        _refusedInBothForms(terms, "FiatTokenV2: authorization is expired");
        // Both with bit 47: block numbers in OpenZeppelin's token, far away timestamps in Circle's.
        VM.roll(100);
        (terms.validAfter, terms.validBefore) = ((1 << 47) + 1, (1 << 47) + 1_000);
        _refusedInBothForms(terms, "FiatTokenV2: authorization is not yet valid");
        (terms.validAfter, terms.validBefore) = (NOW - 1, NOW + 1);
        _done(_bytes(TRANSFER, terms, _sign(TRANSFER, terms)));
        terms.nonce = "2";
        (terms.validAfter, terms.validBefore) = (0, type(uint256).max);
        _done(_bytes(TRANSFER, terms, _sign(TRANSFER, terms)));
    }

    function test_signaturesThatAreNone() external {
        Terms memory terms = _terms(payer, "1");
        bytes memory good = _sign(TRANSFER, terms);
        (bytes32 r, bytes32 s, uint8 v) = _split(good);
        bytes memory twin = abi.encodePacked(r, bytes32(ORDER - uint256(s)), v == 27 ? uint8(28) : uint8(27));
        _refused(_vrs(TRANSFER, terms, twin), BAD_SIGNATURE);
        _refused(_bytes(TRANSFER, terms, twin), BAD_SIGNATURE);
        _refused(_bytes(TRANSFER, terms, ""), BAD_SIGNATURE);
        _refused(_bytes(TRANSFER, terms, abi.encodePacked(good, uint8(0))), BAD_SIGNATURE);
        _refused(_bytes(TRANSFER, terms, abi.encodePacked(r, s, v - 27)), BAD_SIGNATURE);
        _refused(_bytes(TRANSFER, terms, _sign(RECEIVE, terms)), BAD_SIGNATURE);
        terms.value += 1;
        _refused(_bytes(TRANSFER, terms, good), BAD_SIGNATURE);
        terms.from = address(0); // what a failed recovery gives
        _refused(_vrs(TRANSFER, terms, new bytes(65)), BAD_SIGNATURE);
        require(!token.authorizationState(payer, "1"), "used");
    }

    function test_tooLittleMoneyLeavesTheAuthorizationAlive() external {
        Terms memory terms = _terms(payer, "1");
        terms.value = 100e6 + 1;
        _refusedInBothForms(terms, "ERC20: transfer amount exceeds balance");
        require(!token.authorizationState(payer, "1"), "used");
        VM.prank(payer);
        _refused(abi.encodeCall(token.transfer, (shop, 100e6 + 1)), "ERC20: transfer amount exceeds balance");
    }

    function test_logsAreNeighbours() external {
        Terms memory terms = _terms(payer, "1");
        VM.recordLogs();
        _done(_vrs(TRANSFER, terms, _sign(TRANSFER, terms)));
        Vm.Log[] memory logs = VM.getRecordedLogs();
        same(logs.length, 2);
        require(logs[0].topics[0] == keccak256("AuthorizationUsed(address,bytes32)"), "first");
        require(logs[0].topics[1] == _word(payer) && logs[0].topics[2] == "1", "whose");
        require(logs[1].topics[0] == keccak256("Transfer(address,address,uint256)"), "second");
        require(logs[1].topics[1] == _word(payer) && logs[1].topics[2] == _word(shop), "from whom to whom");
        same(abi.decode(logs[1].data, (uint256)), terms.value);
        VM.recordLogs();
        _done(_cancel(payer, "2", _sign(_cancelHash(payer, "2"))));
        logs = VM.getRecordedLogs();
        same(logs.length, 1);
        require(logs[0].topics[0] == keccak256("AuthorizationCanceled(address,bytes32)"), "cancelled");
    }

    function test_pause() external {
        token.pause();
        require(token.paused(), "not paused");
        _closed("Pausable: paused");
        _refused(_cancel(payer, "1", _sign(_cancelHash(payer, "1"))), "Pausable: paused");
        token.unpause();
        _paidInBothForms(payer);
    }

    function test_blacklist() external {
        address[2] memory accounts = [payer, shop];
        for (uint256 i = 0; i < 2; ++i) {
            token.blacklist(accounts[i]);
            require(token.isBlacklisted(accounts[i]), "not on the list");
            _closed("Blacklistable: account is blacklisted");
            token.unBlacklist(accounts[i]);
        }
        token.blacklist(address(this)); // only carries the authorization
        _paidInBothForms(payer);
        VM.prank(payer);
        token.approve(address(this), 1);
        _refused(abi.encodeCall(token.transferFrom, (payer, shop, 1)), "Blacklistable: account is blacklisted");
        token.unBlacklist(address(this));
        require(token.transferFrom(payer, shop, 1), "transferFrom");
    }

    // Helpers

    function _terms(address from, bytes32 nonce) private view returns (Terms memory) {
        return Terms(from, shop, 1e6, 0, NOW + 600, nonce);
    }

    function _paidInBothForms(address from) private {
        (uint256 before, uint256 had) = (token.balanceOf(shop), token.balanceOf(from));
        Terms memory terms = _terms(from, "a");
        _done(_vrs(TRANSFER, terms, _sign(TRANSFER, terms)));
        terms.nonce = "b";
        _done(_bytes(TRANSFER, terms, _sign(TRANSFER, terms)));
        same(token.balanceOf(shop), before + 2e6);
        same(token.balanceOf(from), had - 2e6);
    }

    function _received(address from) private {
        uint256 before = token.balanceOf(shop);
        Terms memory terms = _terms(from, "c");
        bytes memory signature = _sign(RECEIVE, terms);
        _refused(_vrs(RECEIVE, terms, signature), "FiatTokenV2: caller must be the payee");
        _refused(_bytes(RECEIVE, terms, signature), "FiatTokenV2: caller must be the payee");
        VM.prank(shop);
        _done(_vrs(RECEIVE, terms, signature));
        terms.nonce = "d";
        signature = _sign(RECEIVE, terms);
        VM.prank(shop);
        _done(_bytes(RECEIVE, terms, signature));
        same(token.balanceOf(shop), before + 2e6);
    }

    function _cancelledInBothForms(address from) private {
        _done(_cancelVrs(from, "1", _sign(_cancelHash(from, "1"))));
        _done(_cancel(from, "2", _sign(_cancelHash(from, "2"))));
        require(token.authorizationState(from, "1") && token.authorizationState(from, "2"), "still alive");
        _refusedInBothForms(_terms(from, "1"), USED);
        _refused(_cancel(from, "1", _sign(_cancelHash(from, "1"))), USED);
    }

    function _closed(string memory text) private {
        _refusedInBothForms(_terms(payer, "1"), text);
        VM.prank(payer);
        _refused(abi.encodeCall(token.transfer, (shop, 1)), text);
        VM.prank(payer);
        token.approve(address(this), 1);
        _refused(abi.encodeCall(token.transferFrom, (payer, shop, 1)), text);
    }

    function _refusedInBothForms(Terms memory terms, string memory text) private {
        bytes memory signature = _sign(TRANSFER, terms);
        _refused(_vrs(TRANSFER, terms, signature), text);
        _refused(_bytes(TRANSFER, terms, signature), text);
        signature = _sign(RECEIVE, terms);
        VM.prank(terms.to);
        _refused(_vrs(RECEIVE, terms, signature), text);
        VM.prank(terms.to);
        _refused(_bytes(RECEIVE, terms, signature), text);
    }

    function _done(bytes memory input) private {
        (bool ok, bytes memory output) = address(token).call{gas: 5_000_000}(input);
        require(ok, string(output));
    }

    function _refused(bytes memory input, string memory text) private {
        (bool ok, bytes memory output) = address(token).call{gas: 5_000_000}(input);
        require(!ok, "not refused");
        same(output, reason(text));
    }

    function _vrs(string memory what, Terms memory terms, bytes memory signature) private pure returns (bytes memory) {
        (bytes32 r, bytes32 s, uint8 v) = _split(signature);
        string memory form = string.concat(_function(what), "(", TYPES, ",uint8,bytes32,bytes32)");
        return abi.encodePacked(bytes4(keccak256(bytes(form))), abi.encode(terms), abi.encode(v, r, s));
    }

    function _bytes(string memory what, Terms memory t, bytes memory signature) private pure returns (bytes memory) {
        string memory form = string.concat(_function(what), "(", TYPES, ",bytes)");
        return abi.encodeWithSignature(form, t.from, t.to, t.value, t.validAfter, t.validBefore, t.nonce, signature);
    }

    function _cancelVrs(address from, bytes32 nonce, bytes memory signature) private pure returns (bytes memory) {
        (bytes32 r, bytes32 s, uint8 v) = _split(signature);
        return
            abi.encodeWithSignature("cancelAuthorization(address,bytes32,uint8,bytes32,bytes32)", from, nonce, v, r, s);
    }

    function _cancel(address from, bytes32 nonce, bytes memory signature) private pure returns (bytes memory) {
        return abi.encodeWithSignature("cancelAuthorization(address,bytes32,bytes)", from, nonce, signature);
    }

    /// @dev `TransferWithAuthorization` is the type, `transferWithAuthorization` the function.
    function _function(string memory what) private pure returns (string memory) {
        bytes memory text = bytes(string.concat(what));
        text[0] |= 0x20;
        return string(text);
    }

    function _sign(string memory what, Terms memory terms) private view returns (bytes memory) {
        return _sign(keccak256(abi.encode(keccak256(bytes(string.concat(what, "(", TERMS, ")"))), terms)));
    }

    function _sign(bytes32 terms) private view returns (bytes memory) {
        (uint8 v, bytes32 r, bytes32 s) = VM.sign(KEY, keccak256(abi.encodePacked(hex"1901", _domain(token), terms)));
        return abi.encodePacked(r, s, v);
    }

    function _cancelHash(address from, bytes32 nonce) private pure returns (bytes32) {
        return keccak256(abi.encode(keccak256("CancelAuthorization(address authorizer,bytes32 nonce)"), from, nonce));
    }

    function _domain(LocalUSDC usdc) private view returns (bytes32) {
        bytes32 kind = keccak256("EIP712Domain(string name,string version,uint256 chainId,address verifyingContract)");
        return keccak256(abi.encode(kind, keccak256("USD Coin"), keccak256("2"), block.chainid, usdc));
    }

    function _sameDomain(LocalUSDC usdc) private view {
        same(uint256(usdc.DOMAIN_SEPARATOR()), uint256(_domain(usdc)));
    }

    function _split(bytes memory signature) private pure returns (bytes32 r, bytes32 s, uint8 v) {
        assembly ("memory-safe") {
            r := mload(add(signature, 32))
            s := mload(add(signature, 64))
            v := byte(0, mload(add(signature, 96)))
        }
    }

    function _word(address account) private pure returns (bytes32) {
        return bytes32(uint256(uint160(account)));
    }
}
